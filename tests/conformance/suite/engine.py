"""The scripted engine: a gRPC server that does what a case says, message by message.

A stream reads all the time: it answers pings by itself (unless told not to), hands reports to their leases, and checks the
rules that hold for the stream as a whole.
"""

import asyncio
import time

import grpc
from google.protobuf import timestamp_pb2

from .contract import OK, v1
from .lease import text

MAX_MESSAGE_BYTES = 4 * 1024 * 1024


def timestamp(seconds_from_now: float) -> timestamp_pb2.Timestamp:
    at = timestamp_pb2.Timestamp()
    at.FromNanoseconds(int((time.time() + seconds_from_now) * 1e9))
    return at


def _serialize(message) -> bytes:
    # Bytes go out as they are: messages of an engine newer than the contract.
    return message if isinstance(message, bytes) else message.SerializeToString()


class Engine:
    def __init__(self, play):
        self.play = play
        self.opened: asyncio.Queue = asyncio.Queue()
        self.streams: list[Stream] = []
        self.port = 0

    async def start(self, port: int = 0) -> None:
        self.server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                # Workers may ping on the connection as often as they like; the engine accepts that, too.
                ("grpc.http2.min_ping_interval_without_data_ms", 1000),
                ("grpc.http2.max_ping_strikes", 0),
            ]
        )
        work = grpc.stream_stream_rpc_method_handler(
            self._work, request_deserializer=v1.WorkRequest.FromString, response_serializer=_serialize
        )
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("tidegate.v1.WorkerService", {"Work": work}),)
        )
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _work(self, _, context):
        stream = Stream(self, context)
        self.streams.append(stream)
        await stream.serve()

    async def accept(self, patience: float | None = None) -> "Stream":
        """The next stream, its Hello read, not yet welcomed."""
        arguments = [patience] if patience else []
        return await self.play.wait(self.opened.get(), f"the worker's Hello at {self.uri}", *arguments)

    async def close(self, grace: float | None = None) -> None:
        """Stops the server: GOAWAY, then streams end after the grace, or at once."""
        await self.server.stop(grace)


class Stream:
    def __init__(self, engine: Engine, context):
        self.engine, self.play, self.context = engine, engine.play, context
        self.hello = None
        self.welcomed = False
        # How many reports one message may hold, and how many came in the fullest one.
        self.batch = 0
        self.fullest = 0
        # Whether pings are answered.
        self.pong = True
        # Whether the worker said that it takes no new jobs.
        self.left = False
        # When each message of the worker came, by the monotonic clock.
        self.heard: list[float] = []
        self.pings = 0
        self.closed = asyncio.Event()
        # Cleared while the engine does not read.
        self.reading = asyncio.Event()
        self.reading.set()
        self._out: asyncio.Queue = asyncio.Queue()
        self._status = None

    # -- the gRPC side ---------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        reader, writer = asyncio.ensure_future(self._read()), asyncio.ensure_future(self._write())
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if self._status is not None:
                await self.context.abort(self._status, "scripted")
        finally:
            for task in (reader, writer):
                task.cancel()
            self.closed.set()
            self.play.note("stream closed")

    async def _write(self) -> None:
        while (message := await self._out.get()) is not None:
            await self.context.write(message)

    async def _read(self) -> None:
        while True:
            await self.reading.wait()
            request = await self.context.read()
            if request is grpc.aio.EOF:
                return
            self.heard.append(time.monotonic())
            kind = request.WhichOneof("message")
            if self.hello is None:
                if kind != "hello":
                    self.play.fail(f"the first message of the stream is no Hello, but a {kind}")
                    return
                self.hello = request.hello
                self.play.note(f"worker: hello {len(self.hello.leases)} leases")
                self.engine.opened.put_nowait(self)
            elif kind == "hello":
                self.play.fail("a second Hello came on one stream")
            elif not self.welcomed:
                self.play.fail(f"a {kind} came before the Welcome: Hello comes alone")
            elif kind == "ping":
                self.pings += 1
                if self.pong:
                    await self.send(v1.WorkResponse(pong=v1.Pong()))
            elif kind == "report":
                self._reported(request.report)
            elif kind == "reports":
                self._reported_together(list(request.reports.reports))
            elif kind == "leave":
                self.left = True
            # Anything else is an addition to the contract that no case asks for.

    def _reported_together(self, reports) -> None:
        if not self.batch:
            self.play.fail(f"{len(reports)} reports came in one message; the Welcome says nothing of such messages, as older engines do")
        elif not 1 <= len(reports) <= self.batch:
            self.play.fail(f"{len(reports)} reports came in one message; the Welcome allows {self.batch}")
        self.fullest = max(self.fullest, len(reports))
        for report in reports:
            self._reported(report)

    def _reported(self, report) -> None:
        self.play.note(f"worker: {report.job_id} {text(report)}")
        lease = self.play.leases.get(report.lease_token)
        if lease is None:
            self.play.fail(f"{text(report)} of job {report.job_id!r} carries the token {report.lease_token!r}, which was never assigned")
        else:
            if report.WhichOneof("body") == "released" and self.play.worker.may_exit and not self.left:
                self.play.fail(f"{text(report)} of job {report.job_id!r} came before `leave`: the engine might assign it here again")
            lease.on_report(self, report)

    # -- what the engine says --------------------------------------------------------------------------------------

    async def send(self, message) -> None:
        kind = message.WhichOneof("message") if not isinstance(message, bytes) else "bytes"
        if kind != "pong":
            self.play.note(f"engine: {str(message)[:160]!r}")
        self._out.put_nowait(message)

    async def welcome(self, *, ping: float = 5.0, resumed=(), lost=(), checkpoint=65536, custom=65536, result=262144, cancel=None, batch=256) -> None:
        """Answers Hello. `resumed` are pairs (lease, last report), `lost` are leases, `cancel` goes with each resumed."""
        message = v1.Welcome(
            max_checkpoint_bytes=checkpoint, max_custom_bytes=custom, max_result_bytes=result, max_batched_reports=batch
        )
        self.batch = batch
        message.lease.FromMilliseconds(60_000)
        message.ping_interval.FromMilliseconds(int(ping * 1000))
        for lease, last_report in resumed:
            one = message.resumed.add(job_id=lease.job_id, last_report=last_report)
            if cancel is not None:
                one.cancel_requested.CopyFrom(cancel)
            lease.resumed(self, last_report)
        for lease in lost:
            message.lost.add(job_id=lease.job_id, lease_token=lease.token, reason="expired")
        self.welcomed = True
        await self.send(v1.WorkResponse(welcome=message))

    async def assign(self, lease) -> None:
        lease.assigned(self)
        await self.send(v1.WorkResponse(assignment=lease.assignment))

    async def ack(self, *ack) -> None:
        await self.send(v1.WorkResponse(ack=self.ack_of(*ack)))

    async def acks(self, *acks) -> None:
        """Answers several reports in one message, if the worker said that it understands that."""
        if self.hello.batched_acks:
            await self.send(v1.WorkResponse(acks=v1.ReportAcks(acks=acks)))
        else:
            for ack in acks:
                await self.send(v1.WorkResponse(ack=ack))

    def ack_of(self, report, result=OK, seq=0, message="", deadline=None, token="") -> v1.ReportAck:
        ack = v1.ReportAck(
            job_id=report.job_id,
            number=report.number,
            result=result,
            seq=seq,
            message=message,
            lease_token=token or report.lease_token,
        )
        if deadline is not None:
            ack.deadline.CopyFrom(timestamp(deadline))
        return ack

    async def cancel(self, lease, seconds: float, token: str | None = None) -> None:
        """Orders the job to stop within the seconds."""
        order = v1.CancelOrder(job_id=lease.job_id, lease_token=token or lease.token)
        order.request.CopyFrom(cancel_request(seconds))
        await self.send(v1.WorkResponse(cancel=order))

    async def lost(self, lease) -> None:
        lost = v1.LeaseLost(job_id=lease.job_id, lease_token=lease.token, reason="another worker has taken over")
        await self.send(v1.WorkResponse(lease_lost=lost))

    async def drain(self, seconds: float) -> None:
        await self.send(v1.WorkResponse(drain=v1.Drain(deadline=timestamp(seconds))))

    def end(self, status=None) -> None:
        """Ends the stream from the engine's side, in order or with a status, behind what was sent already."""
        self._status = status
        self._out.put_nowait(None)

    # -- what a case waits for -------------------------------------------------------------------------------------

    async def quiet(self) -> None:
        """Waits for two more pings: by then the worker has said whatever it had to say.

        The ping interval is not to be so short that a busy machine makes this engine look silent.
        """
        until = self.pings + 2
        await self.play.until(lambda: self.pings >= until or self.closed.is_set(), "two more pings")
        if self.closed.is_set():
            self.play.fail("the worker left a stream on which the engine answered its pings")

    def expect_leases(self, *leases) -> None:
        """Whether Hello names exactly these."""
        named = sorted((held.job_id, held.lease_token) for held in self.hello.leases)
        expected = sorted((lease.job_id, lease.token) for lease in leases)
        if named != expected:
            self.play.fail(f"Hello names the leases {named}; the worker holds {expected}")


def cancel_request(seconds: float):
    from .contract import job

    return job.CancelRequested(by="alice", reason="enough", deadline=timestamp(seconds))
