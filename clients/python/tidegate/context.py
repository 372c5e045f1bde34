"""What a running job can say and ask.

`Context` is for `async` handlers; everything on it belongs to the worker's event loop. `SyncContext` is the same for plain
functions, which run in a thread of their own. Neither reads or writes the network: the worker's owner does.

What a job says is kept until the engine has stored it, and bounded: see `_session`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, Protocol, TypeVar

from google.protobuf.duration_pb2 import Duration

from tidegate import _limits
from tidegate._session import Answer
from tidegate.errors import Cancelled, ReportRejected
from tidegate.v1 import job_pb2 as job
from tidegate.v1 import worker_service_pb2 as wire

T = TypeVar("T")

#: How serious a log line is.
Level = Literal["debug", "info", "warn", "error"]

#: How many checkpoints and custom events of one job may be under way at once: at most 1 MiB of them, unless configured.
_AWAITED = 16

_LEVELS: dict[str, job.LogLevel] = {
    "debug": job.LOG_LEVEL_DEBUG,
    "info": job.LOG_LEVEL_INFO,
    "warn": job.LOG_LEVEL_WARN,
    "error": job.LOG_LEVEL_ERROR,
}


@dataclass(frozen=True)
class Resume:
    """The last checkpoint, from this attempt or an earlier one."""

    name: str
    data: bytes


@dataclass(frozen=True)
class StopReason:
    """Why a job is to stop. `deadline` is a time of `time.monotonic()`: then the job is cut off."""

    why: Literal["cancelled", "shutdown", "lost"]
    by: str
    reason: str
    deadline: float


class Stop:
    """Tells a job to stop; shared by its context and the owner. Set by the loop, read from any thread."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.reason: StopReason | None = None

    def tell(self, reason: StopReason) -> None:
        """Tells the job to stop. Only the first reason is kept, except that losing the job outweighs every other."""
        if self.reason is None or reason.why == "lost":
            self.reason = reason
        self.told.set()


class Reporter(Protocol):
    """The owner, as a context sees it."""

    #: The engine's limits, in bytes.
    max_checkpoint: int
    max_custom: int

    def report(self, job: wire.Assignment, report: wire.Report) -> None: ...

    async def report_and_wait(self, job: wire.Assignment, report: wire.Report) -> Answer: ...

    async def room(self, job: wire.Assignment) -> None: ...


class _Job:
    """What both contexts know."""

    def __init__(self, assignment: wire.Assignment, stop: Stop) -> None:
        self._job = assignment
        self._stop = stop
        #: The input, as it was submitted.
        self.input: Any = None

    @property
    def input_json(self) -> str:
        """The input as a JSON text."""
        return self._job.input_json or "{}"

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._job.job_id

    @property
    def kind(self) -> str:
        """The job's kind."""
        return self._job.kind

    @property
    def attempt(self) -> int:
        """The attempt, from 1."""
        return self._job.attempt

    @property
    def lease_token(self) -> str:
        """The fencing token of this attempt's lease: whoever holds a later attempt is the job's only writer."""
        return self._job.lease_token

    @property
    def tenant(self) -> str:
        """The tenant to which the job belongs."""
        return self._job.tenant

    @property
    def owner(self) -> str:
        """The subject that submitted the job."""
        return self._job.owner

    @property
    def scheduled_for(self) -> datetime | None:
        """The instant for which a schedule submitted the job, in UTC; None if somebody did."""
        return self._job.scheduled_for.ToDatetime(timezone.utc) if self._job.HasField("scheduled_for") else None

    @property
    def resume(self) -> Resume | None:
        """The last checkpoint; None on a fresh start."""
        point = self._job.checkpoint
        return Resume(point.name, point.data) if self._job.HasField("checkpoint") else None

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the job is to stop, and until when; None while it may go on."""
        return self._stop.reason


class Context(_Job):
    """A running job, for its `async` handler."""

    def __init__(self, assignment: wire.Assignment, stop: Stop, reporter: Reporter) -> None:
        super().__init__(assignment, stop)
        self._reporter = reporter
        self._awaited = asyncio.Semaphore(_AWAITED)

    def progress(
        self,
        percent: float | None = None,
        *,
        done: int | None = None,
        total: int | None = None,
        unit: str = "",
        step: int | None = None,
        steps: int | None = None,
        step_name: str = "",
        rate: float | None = None,
        eta: float | None = None,
        message: str = "",
    ) -> None:
        """Reports how far the work is; whatever is unknown is left out.

        `percent` lies in 0 to 100, `done` and `total` count `unit`, `step` counts from 1 to `steps`, `rate` is in units per
        second, `eta` in seconds. Values out of range are clamped, numbers that are none count as unknown. Never waits: while
        an earlier report has not been sent, this one takes its place.
        """
        value = job.Progress(
            percent=None if percent is None or math.isnan(percent) else min(100.0, max(0.0, percent)),
            done=_count(done, 64),
            total=_count(total, 64),
            unit=_limits.cut(unit, _limits.MAX_NAME_BYTES),
            step=_count(step, 32),
            steps=_count(steps, 32),
            step_name=_limits.cut(step_name, _limits.MAX_TEXT_BYTES),
            rate=rate if rate is not None and math.isfinite(rate) and rate >= 0 else None,
            message=_limits.cut(message, _limits.MAX_TEXT_BYTES),
        )
        if eta is not None and 0 <= eta < 1e9:
            value.eta.CopyFrom(Duration(seconds=int(eta), nanos=int(eta % 1 * 1e9)))
        self._reporter.report(self._job, wire.Report(progress=value))

    def log(self, text: str, *, level: Level = "info", source: str = "") -> None:
        """Says one line; longer ones than 16 KiB are cut. Never waits.

        A job that says more than the engine stores, 1 MiB or 256 lines unanswered, loses the lines beyond, and a line in
        their place says how many. `await ctx.drain()` between lines loses none.
        """
        line = job.Log(
            level=_LEVELS[level],
            text=_limits.cut(text, _limits.MAX_LOG_BYTES),
            source=_limits.cut(source, _limits.MAX_TEXT_BYTES),
        )
        self._reporter.report(self._job, wire.Report(log=line))

    async def drain(self) -> None:
        """Waits until there is room for more log lines, as `asyncio.StreamWriter.drain` does for bytes."""
        await self._reporter.room(self._job)

    async def checkpoint(self, name: str, data: bytes) -> None:
        """Saves a point from which the job can resume, and returns once the engine has stored it.

        Raises ReportRejected when it is larger than the engine takes, 64 KiB unless configured; Cancelled when the job is to
        stop: then the point may not have been saved.
        """
        if why := _limits.too_large("a checkpoint", len(data), self._reporter.max_checkpoint):
            raise ReportRejected(why)
        point = job.Checkpoint(name=_limits.cut(name, _limits.MAX_TEXT_BYTES), size=len(data), data=data)
        await self._wait(wire.Report(checkpoint=point))

    async def custom(self, name: str, value: Any) -> None:
        """Publishes something of the job's own, such as a chart, and returns once the engine has stored it.

        Raises ReportRejected when the name is reserved or malformed, or `value` is not JSON or larger than the engine takes,
        64 KiB unless configured; Cancelled as `checkpoint` does.
        """
        if not _limits.is_event_name(name):
            raise ReportRejected(f"an event cannot be named {name!r}")
        try:
            text = _limits.to_json(value)
        except ValueError as error:
            raise ReportRejected(f"the custom event {name!r} is {error}") from None
        if why := _limits.too_large("a custom event", len(text.encode()), self._reporter.max_custom):
            raise ReportRejected(why)
        await self._wait(wire.Report(custom=job.Custom(name=name, json=text)))

    async def _wait(self, report: wire.Report) -> None:
        async with self._awaited:
            answer = await self._reporter.report_and_wait(self._job, report)
        if answer.rejected is not None:
            raise ReportRejected(answer.rejected)
        if not answer.stored:
            raise Cancelled("the job is not this worker's any more, or is being called off")


class SyncContext(_Job):
    """A running job, for a handler that is a plain function. It runs in a thread of its own and may block.

    A thread cannot be interrupted: when the job is to stop, the next call of this context raises Cancelled. Later calls work
    again, for cleaning up, unless the job was lost. Every call waits, so a job that says too much is slowed, not cut.
    """

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(context._job, context._stop)
        self.input = context.input
        self._context = context
        self._loop = loop
        self._raised = False

    def progress(
        self,
        percent: float | None = None,
        *,
        done: int | None = None,
        total: int | None = None,
        unit: str = "",
        step: int | None = None,
        steps: int | None = None,
        step_name: str = "",
        rate: float | None = None,
        eta: float | None = None,
        message: str = "",
    ) -> None:
        """As `Context.progress`."""

        async def say() -> None:
            self._context.progress(
                percent,
                done=done,
                total=total,
                unit=unit,
                step=step,
                steps=steps,
                step_name=step_name,
                rate=rate,
                eta=eta,
                message=message,
            )

        self._call(say())

    def log(self, text: str, *, level: Level = "info", source: str = "") -> None:
        """Says one line; longer ones than 16 KiB are cut. Waits while the engine is slower than the job."""

        async def say() -> None:
            await self._context.drain()
            self._context.log(text, level=level, source=source)

        self._call(say())

    def checkpoint(self, name: str, data: bytes) -> None:
        """As `Context.checkpoint`."""
        self._call(self._context.checkpoint(name, data))

    def custom(self, name: str, value: Any) -> None:
        """As `Context.custom`."""
        self._call(self._context.custom(name, value))

    @property
    def stopping(self) -> bool:
        """Whether the job is to stop."""
        return self._stop.told.is_set()

    def check(self) -> None:
        """Raises Cancelled if the job is to stop; for loops that report nothing."""
        if self.stopping and (not self._raised or self._is_lost()):
            self._raised = True
            raise Cancelled("the job is to stop")

    def sleep(self, seconds: float) -> None:
        """Waits; raises Cancelled as soon as the job is to stop."""
        if self._raised:
            threading.Event().wait(seconds)
        else:
            self._stop.told.wait(seconds)
        self.check()

    def _is_lost(self) -> bool:
        return self._stop.reason is not None and self._stop.reason.why == "lost"

    def _call(self, say: Coroutine[Any, Any, T]) -> T:
        try:
            self.check()
            future = asyncio.run_coroutine_threadsafe(say, self._loop)
        except BaseException:
            # A loop that is closed is a worker that has ended.
            say.close()
            raise
        try:
            return future.result()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            self._raised = True
            raise Cancelled("the job is to stop") from None


def _count(number: int | None, bits: int) -> int | None:
    return None if number is None or number < 0 else int(min(number, 2**bits - 1))
