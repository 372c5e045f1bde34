"""A small conformance worker with faults to switch on: `WRONG=skips_a_number broken_worker.py`.

It proves that the suite sees what it is to see. Without a fault it follows the contract as far as test_suite.py asks; it is
no model of a worker: it drains, floods and shuts down in the simplest way.
"""

import asyncio
import base64
import json
import os
import pathlib
import random
import re
import signal
import sys
import time

import grpc

from suite.contract import CANCELLED, LEASE_LOST, OK, REJECTED
from suite.contract import job as messages
from suite.contract import v1

WRONG = os.environ.get("WRONG", "")
FAULTS = """\
says_no_name reports_before_the_welcome skips_a_number forgets_the_token does_not_wait_for_answers takes_any_answer
believes_rejected_checkpoints forgets_the_checkpoint loses_the_last_progress exceeds_its_capacity sends_what_is_too_large
dies_of_unknown_messages reports_under_a_lost_lease keeps_a_lost_job_running tells_the_lost_end ignores_cancel
completes_when_cancelled hears_any_token names_no_leases sends_answered_reports_again renumbers_reports loses_unanswered_reports
forgets_cancels_in_the_welcome keeps_forgotten_leases stops_jobs_when_the_stream_breaks never_pings storms stays_with_a_silent_engine
ignores_drain does_not_release exits_with_1 exits_unanswered dies_of_html grows swallows_log_lines rounds_numbers shows_stack_traces
lets_the_deaf_run runs_assignments_twice numbers_across_attempts takes_jobs_while_leaving never_says_leave batches_unasked fills_messages_beyond_the_limit hears_the_first_answer_alone
rejects_a_whole_message""".split()


def wrong(fault: str) -> bool:
    assert fault in FAULTS, fault
    return WRONG == fault


class Stop(Exception):
    """The job is to stop, or is lost."""


class Rejected(Exception):
    pass


class Job:
    def __init__(self, assignment):
        self.assignment = assignment
        self.token, self.id = assignment.lease_token, assignment.job_id
        self.number = 0
        self.unanswered: dict[int, tuple] = {}  # number -> (report, future)
        self.window = asyncio.Semaphore(256)
        self.stop = asyncio.Event()
        self.cancelled = self.lost = False
        self.task = None


class Worker:
    def __init__(self):
        self.engines = os.environ["TIDEGATE_ENGINE"].split(",")
        self.capacity = int(os.environ.get("TIDEGATE_CAPACITY", "4"))
        self.grace = float(os.environ.get("TIDEGATE_GRACE_SECONDS", "5"))
        self.jobs: dict[str, Job] = {}
        self.out = None  # the stream's queue while one is up
        self.leaving = self.draining = False
        self.limits = (65536, 65536, 262144)

    # -- the stream ------------------------------------------------------------------------------------------------

    async def run(self):
        pause, engine = 0.2, 0
        while True:
            since = time.monotonic()
            uri = self.engines[engine % len(self.engines)]
            try:
                await self.connect(uri)
            except grpc.RpcError as error:
                print(f"no gRPC engine at {uri}: {error.details()}", file=sys.stderr, flush=True)
                if wrong("dies_of_html") and "HTTP" in str(error.details()).upper() + str(error):
                    sys.exit(3)
            self.out = None
            if wrong("stops_jobs_when_the_stream_breaks"):
                for job in list(self.jobs.values()):
                    self.lose(job)
            engine += 1
            if time.monotonic() - since > 10:
                pause = 0.2
            if not self.draining:
                await asyncio.sleep(0.001 if wrong("storms") else pause * random.uniform(0.5, 1))
            self.draining = False
            pause = min(pause * 2, 15)

    async def connect(self, uri):
        async with grpc.aio.insecure_channel(uri.removeprefix("http://")) as channel:
            work = channel.stream_stream(
                "/tidegate.v1.WorkerService/Work",
                request_serializer=v1.WorkRequest.SerializeToString,
                response_deserializer=(v1.WorkResponse.FromString if not wrong("dies_of_unknown_messages") else strict),
            )
            call = work()
            hello = v1.Hello(batched_acks=True, capacity=self.capacity, name="" if wrong("says_no_name") else "broken", client="python/0")
            hello.kinds.add(kind="conformance", description="Follows a script.", input_schema_json="{}", example_json="{}")
            if not wrong("names_no_leases"):
                for job in self.jobs.values():
                    hello.leases.add(job_id=job.id, lease_token=job.token)
            await call.write(v1.WorkRequest(hello=hello))
            if wrong("reports_before_the_welcome"):
                await call.write(v1.WorkRequest(ping=v1.Ping()))
            first = await call.read()
            if first is grpc.aio.EOF:
                return
            self.out = asyncio.Queue()
            self.heard = time.monotonic()
            self.welcomed(first.welcome)
            tasks = {asyncio.ensure_future(part(call)) for part in (self.write, self.read, self.keep_alive)}
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                call.cancel()

    async def write(self, call):
        while True:
            request, together = await self.out.get(), []
            # Reports that wait leave together; behind them whatever else there is.
            while request is not None and request.HasField("report") and len(together) < self.batch:
                together.append(request.report)
                request = None if self.out.empty() or len(together) == self.batch else self.out.get_nowait()
            if together:
                await call.write(v1.WorkRequest(reports=v1.Reports(reports=together)))
            if request is not None:
                await call.write(request)

    async def keep_alive(self, _):
        while True:
            await asyncio.sleep(self.ping if not (self.draining or self.leaving) else 0.05)
            if not wrong("never_pings"):
                self.out.put_nowait(v1.WorkRequest(ping=v1.Ping()))
            if time.monotonic() - self.heard > 2 * self.ping and not wrong("stays_with_a_silent_engine"):
                return
            if self.draining and (not self.jobs or time.time() > self.drain_until):
                return

    async def read(self, call):
        while (message := await call.read()) is not grpc.aio.EOF:
            self.heard = time.monotonic()
            kind = message.WhichOneof("message")
            if kind == "assignment":
                self.assigned(message.assignment)
            elif kind == "ack":
                self.acked(message.ack)
            elif kind == "acks":
                acks = message.acks.acks[:1] if wrong("hears_the_first_answer_alone") else message.acks.acks
                rejected = wrong("rejects_a_whole_message") and any(ack.result == REJECTED for ack in acks)
                for ack in acks:
                    if rejected and ack.result == OK:
                        ack.result = REJECTED
                    self.acked(ack)
            elif kind == "cancel":
                job = self.jobs.get(message.cancel.job_id)
                if job and (job.token == message.cancel.lease_token or wrong("hears_any_token")):
                    self.cancel(job, message.cancel.request.deadline.ToNanoseconds() / 1e9)
            elif kind == "lease_lost":
                job = self.jobs.get(message.lease_lost.job_id)
                if job and (job.token == message.lease_lost.lease_token or wrong("hears_any_token")):
                    self.lose(job)
            elif kind == "drain" and not wrong("ignores_drain"):
                self.draining, self.drain_until = True, message.drain.deadline.ToNanoseconds() / 1e9 - 0.5

    def welcomed(self, welcome):
        self.ping = welcome.ping_interval.ToTimedelta().total_seconds() or 5
        self.batch = welcome.max_batched_reports
        if wrong("batches_unasked") or wrong("fills_messages_beyond_the_limit") and self.batch:
            self.batch = 1000
        said = (welcome.max_checkpoint_bytes, welcome.max_custom_bytes, welcome.max_result_bytes)
        self.limits = tuple(limit or default for limit, default in zip(said, (65536, 65536, 262144)))
        resumed = {lease.job_id: lease for lease in welcome.resumed}
        for job in list(self.jobs.values()):
            lease = resumed.get(job.id)
            if lease is None:
                if not wrong("keeps_forgotten_leases"):
                    self.lose(job)
                    continue
                lease = v1.ResumedLease()
            for number, (report, answer) in sorted(job.unanswered.items()):
                if number <= lease.last_report and not wrong("sends_answered_reports_again"):
                    self.answered(job, number, None)
                elif not wrong("loses_unanswered_reports"):
                    if wrong("renumbers_reports"):
                        report.number += 1
                    self.out.put_nowait(v1.WorkRequest(report=report))
            if lease.HasField("cancel_requested") and not wrong("forgets_cancels_in_the_welcome"):
                self.cancel(job, lease.cancel_requested.deadline.ToNanoseconds() / 1e9)

    # -- reports and answers ---------------------------------------------------------------------------------------

    def send(self, job, **body):
        """Numbers and sends a report; a future of its answer."""
        answer = asyncio.get_running_loop().create_future()
        if job.lost and not wrong("reports_under_a_lost_lease"):
            answer.set_exception(Stop())
            return answer
        job.number += 2 if wrong("skips_a_number") and job.number == 1 else 1
        token = "" if wrong("forgets_the_token") else job.token
        report = v1.Report(job_id=job.id, lease_token=token, number=job.number, **body)
        job.unanswered[job.number] = (report, answer)
        if self.out is not None:
            self.out.put_nowait(v1.WorkRequest(report=report))
        return answer

    def answered(self, job, number, error):
        if number not in job.unanswered:
            return
        report, answer = job.unanswered.pop(number)
        job.window.release()
        if not answer.done():
            answer.set_exception(error) if error else answer.set_result(None)
        answer.exception() if answer.done() else None
        kind = report.WhichOneof("body")
        if kind not in ("complete", "fail", "stopped", "released"):
            return
        if isinstance(error, Rejected) and kind == "complete":
            self.send(job, fail=messages.Failed(code="result_too_large", message=str(error)))
        elif isinstance(error, Stop) and kind != "stopped":
            self.send(job, stopped=v1.Stopped())
        elif self.jobs.get(job.id) is job:
            del self.jobs[job.id]

    def acked(self, ack):
        job = self.jobs.get(ack.job_id)
        if job is None or (job.token != ack.lease_token and not wrong("takes_any_answer")):
            return
        if ack.result == LEASE_LOST:
            self.lose(job)
            return
        rejected = ack.result == REJECTED and not wrong("believes_rejected_checkpoints")
        gone = ack.result == CANCELLED and ack.seq == 0
        self.answered(job, ack.number, Rejected(ack.message) if rejected else Stop() if gone else None)
        if ack.result == CANCELLED:
            self.cancel(job, ack.deadline.ToNanoseconds() / 1e9)

    def lose(self, job):
        if self.jobs.get(job.id) is job:
            del self.jobs[job.id]
        if wrong("tells_the_lost_end"):
            self.send(job, stopped=v1.Stopped())
        if wrong("keeps_a_lost_job_running"):
            return
        job.lost = True
        job.stop.set()
        for _, answer in job.unanswered.values():
            if not answer.done():
                answer.set_exception(Stop())
                answer.exception()

    def cancel(self, job, deadline):
        if job.cancelled or wrong("ignores_cancel"):
            return
        job.cancelled = True
        job.stop.set()
        left = max(deadline - time.time(), 2)
        asyncio.get_running_loop().call_later(left, self.cut_off, job)

    def cut_off(self, job):
        if job.task and not job.task.done() and not wrong("lets_the_deaf_run"):
            job.task.cancel()

    # -- jobs ------------------------------------------------------------------------------------------------------

    def assigned(self, assignment):
        held = self.jobs.get(assignment.job_id)
        if held and held.token == assignment.lease_token and not wrong("runs_assignments_twice"):
            return
        job = Job(assignment)
        if held:
            self.lose(held)
            job.number = held.number if wrong("numbers_across_attempts") else 0
        self.jobs[job.id] = job
        if len(self.jobs) > self.capacity and not wrong("exceeds_its_capacity") or (
            self.leaving and not wrong("takes_jobs_while_leaving")
        ):
            self.send(job, released=v1.Released(reason="no slot"))
        elif assignment.kind != "conformance":
            self.send(job, fail=messages.Failed(code="unknown_kind"))
        else:
            job.task = asyncio.ensure_future(self.handle(job))

    async def handle(self, job):
        line(job, "begin")
        end = None
        try:
            result = json.dumps(await self.follow(job))
            if len(result) > self.limits[2]:
                end = {"fail": messages.Failed(code="result_too_large", message="too large")}
            else:
                end = {"complete": messages.Completed(result_json=result)}
        except Stop:
            end = {"released": v1.Released()}
        except asyncio.CancelledError:
            end = {"released": v1.Released()}
        except Failure as failure:
            end = {"fail": failure.failed}
        except Exception as error:
            message = f"{error}\n  at line 1" if wrong("shows_stack_traces") else str(error)
            end = {"fail": messages.Failed(code="error", message=message, retryable=True)}
        line(job, "end")
        if job.lost:
            return
        if job.cancelled and not (wrong("completes_when_cancelled") and "complete" in end):
            end = {"stopped": v1.Stopped()}
        elif "released" in end and wrong("does_not_release"):
            end = {"fail": messages.Failed(code="shutdown")}
        self.send(job, **end)

    async def call(self, job, limit, size, **body):
        """A call that returns when its report is stored."""
        if size > limit and not wrong("sends_what_is_too_large"):
            line(job, "rejected", message=f"{size} bytes; the engine takes {limit}")
            return
        await job.window.acquire()
        answer = self.send(job, **body)
        if wrong("does_not_wait_for_answers"):
            return
        try:
            await answer
        except Rejected as rejected:
            line(job, "rejected", message=str(rejected))

    async def say(self, job, **body):
        if not wrong("grows"):
            await job.window.acquire()
        if job.lost and not wrong("reports_under_a_lost_lease"):
            raise Stop
        self.send(job, **body)

    async def unless_stopped(self, job, seconds):
        try:
            await asyncio.wait_for(job.stop.wait(), seconds)
        except asyncio.TimeoutError:
            return
        raise Stop

    async def follow(self, job):
        for step in json.loads(job.assignment.input_json)["steps"]:
            ((name, value),) = step.items()
            if name == "progress":
                fields = {k: int(v) if k in ("done", "total") else v for k, v in value.items()}
                if wrong("rounds_numbers"):
                    fields = {k: min(int(float(v)), 2**64 - 1) if k in ("done", "total") else v for k, v in fields.items()}
                await self.say(job, progress=messages.Progress(**fields))
            elif name == "progress_flood":
                for n in range(1, value + (0 if wrong("loses_the_last_progress") else 1)):
                    await self.say(job, progress=messages.Progress(done=n, total=value))
            elif name == "log":
                level = ["", "DEBUG", "INFO", "WARN", "ERROR"].index(value.get("level", "INFO"))
                await self.log(job, value["text"], level, value.get("source", ""))
            elif name == "checkpoint":
                await self.checkpoint(job, value["name"], base64.b64decode(value["base64"]))
            elif name == "custom":
                await self.custom(job, value["name"], value["value"])
            elif name == "resumed":
                checkpoint = None
                if job.assignment.HasField("checkpoint") and not wrong("forgets_the_checkpoint"):
                    saved = job.assignment.checkpoint
                    checkpoint = {"name": saved.name, "base64": base64.b64encode(saved.data).decode()}
                await self.custom(job, "resumed", {"attempt": job.assignment.attempt, "checkpoint": checkpoint})
            elif name == "oversized":
                ((what, size),) = value.items()
                if what == "checkpoint":
                    await self.checkpoint(job, "big", bytes(size))
                elif what == "custom":
                    await self.custom(job, "big", "x" * size)
                elif what == "log":
                    await self.log(job, "x" * size)
                else:
                    return "x" * size
            elif name == "print":
                line(job, "print", text=value)
            elif name == "sleep":
                await self.unless_stopped(job, value / 1000)
            elif name == "await_file":
                while not pathlib.Path(value).exists():
                    await self.unless_stopped(job, 0.02)
            elif name == "wait_stop":
                await job.stop.wait()
                line(job, "stopping")
                raise Stop
            elif name == "ignore_stop":
                await asyncio.sleep(value / 1000)
            elif name == "busy":
                await asyncio.to_thread(time.sleep, value / 1000)
            elif name == "flood":
                for n in range(value["logs"]):
                    if not (wrong("swallows_log_lines") and n > 1000 and len(job.unanswered) > 100):
                        await self.log(job, f"{n} ".ljust(value["bytes"], "x"))
                        await asyncio.sleep(0)
            elif name == "fail":
                raise Failure(messages.Failed(**value))
            elif name == "throw":
                raise RuntimeError(value)
            elif name == "complete":
                return value
        return None

    async def log(self, job, text, level=2, source=""):
        data = text.encode()[:16384].decode(errors="ignore")
        await self.say(job, log=messages.Log(text=data, level=level, source=source))

    async def checkpoint(self, job, name, data):
        body = messages.Checkpoint(name=name, data=data, size=len(data))
        await self.call(job, self.limits[0], len(data), checkpoint=body)

    async def custom(self, job, name, value):
        text = json.dumps(value, ensure_ascii=False)
        if not re.fullmatch("[a-z][a-z0-9._-]{0,63}", name) or name in ("error", "complete"):
            line(job, "rejected", message=f"an event cannot be named {name!r}")
            return
        await self.call(job, self.limits[1], len(text.encode()), custom=messages.Custom(name=name, json=text))

    async def leave(self):
        self.leaving = True
        if self.out and not wrong("never_says_leave"):
            self.out.put_nowait(v1.WorkRequest(leave=v1.Leave()))
        until = time.monotonic() + self.grace
        while any(job.task and not job.task.done() for job in self.jobs.values()) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for job in self.jobs.values():
            job.stop.set()
        until = time.monotonic() + 5
        while any(job.task and not job.task.done() for job in self.jobs.values()) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for job in self.jobs.values():
            if job.task:
                job.task.cancel()
        until = time.monotonic() + 5
        while self.jobs and time.monotonic() < until and not wrong("exits_unanswered"):
            await asyncio.sleep(0.02)
        os._exit(1 if wrong("exits_with_1") else 0)


class Failure(Exception):
    def __init__(self, failed):
        self.failed = failed


def strict(data):
    message = v1.WorkResponse.FromString(data)
    if message.WhichOneof("message") is None:
        os._exit(4)
    return message


def line(job, at, **more):
    print(json.dumps({"job": job.id, "attempt": job.assignment.attempt, "at": at} | more), flush=True)


async def main():
    worker = Worker()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(worker.leave()))
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
