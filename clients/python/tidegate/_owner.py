"""The owner: the only place where the session, the connection and the running jobs of a worker change.

Everything here runs on one event loop, so nothing is locked. One task dials, and while a connection is up three more serve
it: one reads, one writes, one watches the time. Each handler has a task; a plain function has a thread beside it.

While the worker shuts down, the engine is told to assign nothing more. What comes all the same is kept aside unstarted and
given back at the end: an engine that does not listen would assign it here again at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tidegate import _handling, _limits, _link
from tidegate._engines import Backoff
from tidegate._session import GONE, Answer, Answered, Cancel, Effect, Ended, Lost, Session
from tidegate.context import Context, Stop, StopReason
from tidegate.v1 import job_pb2 as job
from tidegate.v1 import worker_service_pb2 as wire

if TYPE_CHECKING:
    from tidegate.worker import Plan

logger = logging.getLogger("tidegate.worker")

#: How long jobs have to return once a shutdown has told them to stop, in seconds.
STOP_TIME = 5.0
#: How long the last reports of a shutdown may take, in seconds.
FLUSH_TIME = 5.0
#: How long handlers have for their last steps when nobody hears them any more, in seconds.
LAST_TIME = 1.0
#: How long a job may take to obey a cancellation when the engine does not say, in seconds.
CANCEL_TIME = 30.0
#: The deadline is a time of the engine's clock. With a skewed clock of ours it may seem to have passed: the job gets this
#: long all the same, and the engine enforces the true one.
LEAST_CANCEL_TIME = 2.0
#: The ping interval when the engine does not say, in seconds; and the shortest that is kept.
PING = 10.0
LEAST_PING = 0.05
#: How many reports leave in one message at most, whatever the engine allows.
MAX_BATCH = 256

Ticket = asyncio.Future[Answer]


@dataclass
class _Running:
    """A job whose handler runs."""

    assignment: wire.Assignment
    stop: Stop
    task: asyncio.Task[wire.Report]
    #: Whether the handler is a plain function in a thread, which cannot be interrupted.
    threaded: bool
    #: Set when the engine called the job off: then it reports `stopped`, whatever its handler returns.
    cancelled: bool = False
    #: Cuts the job off at the deadline of its cancellation.
    abort: asyncio.TimerHandle | None = None

    def tell(self, reason: StopReason) -> None:
        self.stop.tell(reason)
        if not self.threaded:
            self.task.cancel()

    def disarm(self) -> None:
        if self.abort is not None:
            self.abort.cancel()


class Owner:
    """One worker's life; `run` is called once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._session: Session[Ticket] = Session()
        self._jobs: dict[str, _Running] = {}
        #: The tasks of all handlers, those too that were told to stop and have not yet.
        self._tasks: set[asyncio.Task[wire.Report]] = set()
        #: Assignments that came during the shutdown; never more than the capacity.
        self._unstarted: dict[str, wire.Assignment] = {}
        self._working = True
        #: Who waits for room for log lines, by job and token.
        self._crowd: dict[tuple[str, str], list[asyncio.Future[None]]] = {}
        #: Each is cleared by the one task that waits for it: something may be there to send; a job or a lease may have ended.
        self._unsent, self._watched, self._ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._leave_at: float | None = None
        self._heard = 0.0
        self._ping = PING
        self.max_checkpoint = _limits.MAX_CHECKPOINT_BYTES
        self.max_custom = _limits.MAX_CUSTOM_BYTES
        self._max_result = _limits.MAX_RESULT_BYTES
        #: How many reports one message may hold.
        self._batch = 1

    async def run(self, shutdown: asyncio.Event) -> int:
        """Works until `shutdown` is set and the jobs at hand are finished or given back.

        Returns how many handlers ignore that they were told to stop.
        """
        dialler = asyncio.create_task(self._connect_for_ever(), name="tidegate-connection")
        try:
            await shutdown.wait()
            logger.info("shutting down; %d jobs run", len(self._jobs))
            self._working = False
            self._unsent.set()
            await self._until(lambda: not self._jobs, self._plan.grace)
            deadline = time.monotonic() + STOP_TIME
            for running in self._jobs.values():
                running.tell(StopReason("shutdown", "", _handling.LEAVING, deadline))
            await self._until(lambda: not self._jobs, STOP_TIME)
            for assignment in [running.assignment for running in self._jobs.values()]:
                self._end(assignment, _handling.released(_handling.LEAVING))
            # Until the last answer: an engine that does not know yet may assign something more.
            await self._until(self._give_back, FLUSH_TIME)
        finally:
            dialler.cancel()
            for lease in self._session.held():
                # Nobody will answer any more; whoever waits is told.
                gone = wire.LeaseLost(job_id=lease.job_id, lease_token=lease.lease_token, reason="the worker has ended")
                self._apply(self._session.lost(gone))
            for task in self._tasks:
                task.cancel()
            await asyncio.wait([dialler, *self._tasks], timeout=LAST_TIME)
        return len(self._tasks)

    # What the contexts call.

    def report(self, assignment: wire.Assignment, report: wire.Report) -> None:
        if self._session.push(assignment.job_id, assignment.lease_token, report):
            self._unsent.set()

    async def report_and_wait(self, assignment: wire.Assignment, report: wire.Report) -> Answer:
        ticket: Ticket = asyncio.get_running_loop().create_future()
        if not self._session.push(assignment.job_id, assignment.lease_token, report, ticket):
            return GONE
        self._unsent.set()
        return await ticket

    async def room(self, assignment: wire.Assignment) -> None:
        key = (assignment.job_id, assignment.lease_token)
        while self._session.is_crowded(*key):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._crowd.setdefault(key, []).append(waiter)
            await waiter

    # The connection.

    async def _connect_for_ever(self) -> None:
        engines, backoff = self._plan.engines, Backoff()
        at = random.randrange(len(engines))
        while True:
            engine = engines[at % len(engines)]
            lasted = 0.0
            try:
                link = await _link.open_link(engine, self._hello(), self._plan.token, self._plan.credentials)
                since = time.monotonic()
                try:
                    why = await self._serve(link, engine.uri)
                finally:
                    self._session.disconnected()
                    await link.close()
                lasted = time.monotonic() - since
                logger.warning("engine %s: disconnected: %s", engine.uri, why)
            except _link.LinkError as error:
                logger.warning("engine %s: %s", engine.uri, error)
            except Exception:
                # Whatever it is, a worker that stopped connecting would be dead without showing it.
                logger.exception("engine %s: the connection failed in an unforeseen way", engine.uri)
            at += 1
            await asyncio.sleep(backoff.pause(lasted, random.random()))

    def _hello(self) -> wire.Hello:
        plan = self._plan
        return wire.Hello(
            name=plan.name,
            kinds=[kind.offer for kind in plan.kinds.values()],
            capacity=plan.capacity,
            leases=self._session.held(),
            client=plan.client,
            batched_acks=True,
        )

    async def _serve(self, link: _link.Link, uri: str) -> str:
        """Serves a connection until it ends, and says why."""
        welcome = link.welcome
        logger.info("engine %s: connected, %d leases resumed", uri, len(welcome.resumed))
        self._leave_at = None
        self._heard = time.monotonic()
        self._ping = max(_seconds(welcome.ping_interval) or PING, LEAST_PING)
        self.max_checkpoint = welcome.max_checkpoint_bytes or _limits.MAX_CHECKPOINT_BYTES
        self.max_custom = welcome.max_custom_bytes or _limits.MAX_CUSTOM_BYTES
        self._max_result = welcome.max_result_bytes or _limits.MAX_RESULT_BYTES
        self._batch = min(max(1, welcome.max_batched_reports), MAX_BATCH)
        self._apply(self._session.welcomed(welcome.resumed, welcome.lost))
        tasks = [asyncio.create_task(serve) for serve in (self._read(link), self._write(link), self._watch())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for task, result in zip(tasks, results, strict=True):
            if task in done and isinstance(result, Exception) and not isinstance(result, _link.LinkError):
                raise result
        return next(str(result) for task, result in zip(tasks, results, strict=True) if task in done)

    async def _read(self, link: _link.Link) -> str:
        while True:
            message = await link.read()
            self._heard = time.monotonic()
            what = message.WhichOneof("message")
            if what == "assignment":
                self._assigned(message.assignment)
            elif what == "ack":
                self._apply(self._session.acked(message.ack))
            elif what == "acks":
                for ack in message.acks.acks:
                    self._apply(self._session.acked(ack))
            elif what == "cancel":
                self._apply(self._session.cancel(message.cancel))
            elif what == "lease_lost":
                self._apply(self._session.lost(message.lease_lost))
            elif what == "drain":
                logger.info("the engine drains")
                # A little before the engine hangs up by itself.
                left = _until(message.drain.deadline) if message.drain.HasField("deadline") else 0.0
                self._leave_at = time.monotonic() + max(0.0, left - 1.0)
                self._watched.set()
            elif what == "welcome":
                return "the engine said welcome twice"
            # A pong, or something that only a newer engine says: a sign of life.

    async def _write(self, link: _link.Link) -> str:
        # Early, so that a late wake-up is still in time.
        pause = self._ping * 0.75
        next_ping = time.monotonic() + pause
        told = False
        while True:
            left = next_ping - time.monotonic()
            if not self._working and not told:
                # Before any report of this shutdown: what is given back then goes to other workers.
                await link.write(wire.WorkRequest(leave=wire.Leave()))
                told = True
            elif left <= 0:
                await link.write(wire.WorkRequest(ping=wire.Ping()))
                next_ping = time.monotonic() + pause
            elif reports := self._session.next_reports(self._batch):
                together = wire.WorkRequest(reports=wire.Reports(reports=reports))
                await link.write(together if len(reports) > 1 else wire.WorkRequest(report=reports[0]))
            else:
                self._unsent.clear()
                await _wait(self._unsent, left)

    async def _watch(self) -> str:
        """Ends when the engine is silent, or when it drains and it is time to leave."""
        while True:
            now = time.monotonic()
            if self._leave_at is not None and (self._is_idle() or self._leave_at <= now):
                return "the engine drained"
            silent_at = self._heard + 2 * self._ping
            if silent_at <= now:
                return f"the engine was silent for {2 * self._ping:.1f} s"
            until = min(silent_at, now + self._ping, self._leave_at or silent_at)
            self._watched.clear()
            await _wait(self._watched, until - now)
            late = time.monotonic() - until
            if late > self._ping / 2:
                logger.warning(
                    "the event loop stood still for %.1f s: the process was paused, or a handler computes or blocks; then make "
                    "it a plain function, or use asyncio.to_thread, or its jobs will lose their leases",
                    late,
                )
                # What the engine said meanwhile has not been read yet.
                self._heard = time.monotonic()

    # The jobs.

    def _assigned(self, assignment: wire.Assignment) -> None:
        effects = self._session.assign(assignment.job_id, assignment.lease_token)
        if effects is None:
            return
        self._apply(effects)
        taken = len(self._jobs) if self._working else len(self._unstarted)
        kind = self._plan.kinds.get(assignment.kind)
        if taken >= self._plan.capacity:
            self._end(assignment, _handling.released("every slot of the worker is taken"))
        elif not self._working:
            self._unstarted[assignment.job_id] = assignment
        elif kind is None:
            self._end(assignment, _handling.failed("unknown_kind", f"this worker does not run {assignment.kind!r}", False))
        else:
            logger.info("job %s: %s begins, attempt %d", assignment.job_id, assignment.kind, assignment.attempt)
            stop = Stop()
            context = Context(assignment, stop, self)
            task = asyncio.create_task(_handling.run(context, kind.handler, kind.threaded, lambda: self._max_result))
            running = _Running(assignment, stop, task, kind.threaded)
            self._jobs[assignment.job_id] = running
            self._tasks.add(task)
            # Not the task's own last step: one that is cancelled before its first has none.
            task.add_done_callback(lambda _: self._finished(running))

    def _finished(self, running: _Running) -> None:
        assignment, task = running.assignment, running.task
        self._tasks.discard(task)
        # Aborted, lost or assigned anew meanwhile: then somebody else has had the last word.
        if self._jobs.get(assignment.job_id) is not running:
            return
        if running.cancelled:
            outcome = wire.Report(stopped=wire.Stopped())
        elif task.cancelled():
            outcome = _handling.released(_handling.LEAVING)
        else:
            outcome = task.result()
        logger.info("job %s: ends with %s", assignment.job_id, outcome.WhichOneof("body"))
        self._end(assignment, outcome)

    def _end(self, assignment: wire.Assignment, outcome: wire.Report) -> None:
        """Queues the report that ends a job, and frees its slot."""
        running = self._jobs.get(assignment.job_id)
        if running is not None and running.assignment.lease_token == assignment.lease_token:
            del self._jobs[assignment.job_id]
            running.disarm()
        # It fails only when the lease is gone, and then there is nothing to end.
        self.report(assignment, outcome)
        self._changed()

    def _apply(self, effects: list[Effect[Ticket]]) -> None:
        for effect in effects:
            if isinstance(effect, Answered):
                if not effect.tag.done():
                    effect.tag.set_result(effect.answer)
            elif isinstance(effect, Cancel):
                self._cancel(effect.job_id, effect.request)
            elif isinstance(effect, Lost):
                self._unstarted.pop(effect.job_id, None)
                running = self._jobs.pop(effect.job_id, None)
                if running is not None:
                    logger.warning("job %s: lost: %s", effect.job_id, effect.reason)
                    running.disarm()
                    running.tell(StopReason("lost", "", effect.reason, time.monotonic()))
            elif isinstance(effect, Ended):
                logger.debug("job %s: lease returned", effect.job_id)
        self._changed()
        self._unsent.set()
        for key in [key for key in self._crowd if not self._session.is_crowded(*key)]:
            for waiter in self._crowd.pop(key):
                if not waiter.done():
                    waiter.set_result(None)

    def _changed(self) -> None:
        self._watched.set()
        self._ended.set()

    def _cancel(self, job_id: str, request: job.CancelRequested) -> None:
        unstarted = self._unstarted.pop(job_id, None)
        if unstarted is not None:
            self._end(unstarted, wire.Report(stopped=wire.Stopped()))
        running = self._jobs.get(job_id)
        if running is None or running.cancelled:
            return
        left = max(LEAST_CANCEL_TIME, _until(request.deadline) if request.HasField("deadline") else CANCEL_TIME)
        logger.info("job %s: called off by %s: %s", job_id, request.by or "somebody", request.reason)
        running.cancelled = True
        running.abort = asyncio.get_running_loop().call_later(left, self._abort, running)
        running.tell(StopReason("cancelled", request.by, request.reason, time.monotonic() + left))

    def _abort(self, running: _Running) -> None:
        """Drops a job that ignored its cancellation; its slot is free again."""
        logger.warning("job %s: ignored its cancellation and is dropped", running.assignment.job_id)
        self._end(running.assignment, wire.Report(stopped=wire.Stopped()))
        running.task.cancel()

    # The end.

    def _is_idle(self) -> bool:
        return not self._jobs and self._session.is_empty()

    def _give_back(self) -> bool:
        for assignment in list(self._unstarted.values()):
            del self._unstarted[assignment.job_id]
            self._end(assignment, _handling.released(_handling.LEAVING))
        return self._session.is_empty()

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        """Waits for a condition that changes when a job or a lease ends, but no longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while not done() and (left := deadline - time.monotonic()) > 0:
            self._ended.clear()
            await _wait(self._ended, left)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Waits for `event`, which the caller has cleared, or sets it when the time is up.

    Not by asyncio.wait_for: before Python 3.12 that may swallow a cancellation which comes together with the event.
    """
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _until(deadline: Timestamp) -> float:
    """The seconds from now to a time of the engine's clock; 0 when it has passed."""
    now = datetime.now(timezone.utc).timestamp()
    return max(0.0, deadline.seconds + deadline.nanos / 1e9 - now)
