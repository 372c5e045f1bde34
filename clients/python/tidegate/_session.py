"""The worker's side of `worker_service.proto`, as a pure state machine.

A session holds the leases and, for each, the reports that the engine has not answered. Its invariants:

- reports of one lease are sent in order, numbered 1, 2, 3 … with no hole, and a number never changes its meaning;
- a report is kept until it is answered, and sent again on the next stream unless the engine has stored it;
- nothing is sent for a lease that is lost, and nothing after the report that ended the job;
- what one job keeps is bounded: progress that has not been sent yet is superseded by later progress, log lines beyond a
  window of 1 MiB or 256 lines are left out and one line in their place says how many.

It does no I/O, has no clock and starts nothing: what is to be done comes back as effects. `T` is whatever the caller wants
back with the answer. How many checkpoints and custom events are queued is the caller's to bound: it waits for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tidegate.v1 import job_pb2 as job
from tidegate.v1 import worker_service_pb2 as wire

T = TypeVar("T")

#: What the unanswered log lines of one job may cost, in bytes.
LOG_WINDOW = 1024 * 1024
#: What a log line costs at least, so that short ones are bounded by count: 256.
MIN_LOG_COST = 4 * 1024
#: How many reports of one lease may be under way; the engine takes no more at once.
MAX_IN_FLIGHT = 256
#: How many bytes of reports leave together, about: far below the largest message, which is 4 MiB.
BATCH_BYTES = 256 * 1024

_ENDING = frozenset(("complete", "fail", "stopped", "released"))


@dataclass(frozen=True)
class Answer:
    """What became of a report: stored; gone, because the job is not ours any more or is being called off; or rejected."""

    stored: bool
    #: Why it was rejected; None when it was not.
    rejected: str | None = None


STORED = Answer(True)
GONE = Answer(False)


@dataclass(frozen=True)
class Answered(Generic[T]):
    """A report was answered, or never will be."""

    tag: T
    answer: Answer


@dataclass(frozen=True)
class Cancel:
    """Tell the job to stop."""

    job_id: str
    request: job.CancelRequested


@dataclass(frozen=True)
class Lost:
    """Abort the job; it belongs to somebody else."""

    job_id: str
    reason: str


@dataclass(frozen=True)
class Ended:
    """The engine knows that the job has ended: the lease is gone."""

    job_id: str


Effect = Answered[T] | Cancel | Lost | Ended


@dataclass
class _Entry(Generic[T]):
    report: wire.Report
    tag: T | None
    #: What the entry takes of the window for log lines.
    cost: int = 0

    @property
    def number(self) -> int:
        """0 until the report is first sent; then it may not be changed or dropped."""
        return self.report.number

    @property
    def body(self) -> str:
        return self.report.WhichOneof("body") or ""


@dataclass
class _Lease(Generic[T]):
    token: str
    #: The number that the next report takes when it is first sent.
    next: int = 1
    #: Unanswered reports, oldest first.
    queue: deque[_Entry[T]] = field(default_factory=deque)
    #: How many entries at the front of `queue` were sent on the present stream.
    sent: int = 0
    #: What the log lines in `queue` cost.
    logged: int = 0
    #: How many log lines were left out since the last one that was kept.
    left_out: int = 0
    #: Whether the report that ends the job is queued: nothing may follow.
    ending: bool = False
    #: Whether the job is in `Session._ready`.
    ready: bool = False

    def append(self, entry: _Entry[T]) -> None:
        self.queue.append(entry)
        self.logged += entry.cost

    def remove(self, at: int) -> _Entry[T]:
        entry = self.queue[at]
        del self.queue[at]
        self.logged -= entry.cost
        return entry

    def own_up(self) -> None:
        """Says in a line how many lines are missing at this place."""
        if self.left_out:
            text = f"{self.left_out} log lines left out here: the job wrote faster than the engine stored them"
            line = job.Log(level=job.LOG_LEVEL_WARN, text=text, source="tidegate")
            self.left_out = 0
            self.append(_Entry(wire.Report(log=line), None, MIN_LOG_COST))


class Session(Generic[T]):
    """The leases and their unanswered reports."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease[T]] = {}
        #: The jobs that have something to send, each once, served in turn.
        self._ready: deque[str] = deque()
        self._online = False

    def assign(self, job_id: str, token: str) -> list[Effect[T]] | None:
        """Takes a lease, unless it is held already (None). One on the same job with another token is lost by that."""
        effects: list[Effect[T]] = []
        held = self._leases.get(job_id)
        if held is not None:
            if held.token == token:
                return None
            effects = self._drop(job_id, "the job was assigned anew")
        self._leases[job_id] = _Lease(token)
        return effects

    def push(self, job_id: str, token: str, report: wire.Report, tag: T | None = None) -> bool:
        """Queues a report of which only the body is set; False when the lease is gone or the job has already ended."""
        lease = self._leases.get(job_id)
        if lease is None or lease.token != token or lease.ending:
            return False
        entry = _Entry(report, tag)
        body = entry.body
        if body == "log":
            entry.cost = max(MIN_LOG_COST, len(report.log.text.encode()))
            if lease.left_out or lease.logged + entry.cost > LOG_WINDOW:
                lease.left_out += 1
                return True
        elif body == "progress":
            _supersede(lease)
        else:
            lease.own_up()
        lease.ending = body in _ENDING
        lease.append(entry)
        self._mark_ready(job_id, lease)
        return True

    def is_crowded(self, job_id: str, token: str) -> bool:
        """Whether the job's window for log lines is more than half full; a job that waits then loses no line."""
        lease = self._leases.get(job_id)
        return lease is not None and lease.token == token and lease.logged > LOG_WINDOW // 2

    def next_reports(self, most: int) -> list[wire.Report]:
        """The next reports to send together: at most `most`, none after the one that makes them BATCH_BYTES.

        Jobs take turns, and one whose turn it is gives all it has.
        """
        reports: list[wire.Report] = []
        size = 0
        while self._online and self._ready and len(reports) < most and size < BATCH_BYTES:
            job_id = self._ready.popleft()
            lease = self._leases[job_id]
            lease.ready = False
            while lease.sent < min(len(lease.queue), MAX_IN_FLIGHT) and len(reports) < most and size < BATCH_BYTES:
                report = lease.queue[lease.sent].report
                if report.number == 0:
                    report.job_id, report.lease_token, report.number = job_id, lease.token, lease.next
                    lease.next += 1
                lease.sent += 1
                size += report.ByteSize()
                reports.append(report)
            self._mark_ready(job_id, lease)
        return reports

    def held(self) -> list[wire.HeldLease]:
        """The leases to name in a Hello."""
        return [wire.HeldLease(job_id=id, lease_token=lease.token) for id, lease in self._leases.items()]

    def is_empty(self) -> bool:
        """Whether no lease is held, so that every ended job is known to the engine to have ended."""
        return not self._leases

    def disconnected(self) -> None:
        """The stream broke: everything unanswered will be sent again."""
        self._online = False
        self._ready.clear()
        for lease in self._leases.values():
            lease.ready = False

    def welcomed(self, resumed: Iterable[wire.ResumedLease], lost: Iterable[wire.LeaseLost]) -> list[Effect[T]]:
        """A new stream is up, and the engine has answered the Hello that named `held`."""
        effects: list[Effect[T]] = []
        self._online = True
        for gone in lost:
            effects += self.lost(gone)
        kept = {lease.job_id: lease for lease in resumed}
        # A lease of which the engine says nothing is unknown to it.
        for job_id in [id for id in self._leases if id not in kept]:
            effects += self._drop(job_id, "the engine does not know the lease")
        for job_id, resume in kept.items():
            lease = self._leases.get(job_id)
            if lease is None:
                continue
            lease.sent = 0
            ended = False
            while lease.queue and 0 < lease.queue[0].number <= resume.last_report:
                entry = lease.remove(0)
                ended = ended or entry.body in _ENDING
                effects += _answered(entry, STORED)
            if ended:
                del self._leases[job_id]
                effects.append(Ended(job_id))
                continue
            if resume.HasField("cancel_requested"):
                effects.append(Cancel(job_id, resume.cancel_requested))
            self._make_room(job_id, lease)
        return effects

    def acked(self, ack: wire.ReportAck) -> list[Effect[T]]:
        """The engine answered a report."""
        job_id = ack.job_id
        lease = self._leases.get(job_id)
        if lease is None or lease.token != ack.lease_token:
            return []
        if ack.result == wire.REPORT_RESULT_LEASE_LOST:
            return self._drop(job_id, "a later attempt has taken over")
        at = next((i for i in range(lease.sent) if lease.queue[i].number == ack.number), None)
        if at is None:
            return []
        entry = lease.remove(at)
        lease.sent -= 1
        ending = entry.body in _ENDING
        effects: list[Effect[T]] = []
        # An answer that only a newer engine has counts as stored: the report was answered, and nothing speaks against it.
        answer = STORED
        successor: wire.Report | None = None
        if ack.result == wire.REPORT_RESULT_REJECTED:
            answer = Answer(False, ack.message)
            if entry.body == "complete":
                successor = wire.Report(fail=job.Failed(code="result_too_large", message=ack.message))
        elif ack.result == wire.REPORT_RESULT_CANCELLED:
            request = job.CancelRequested()
            if ack.HasField("deadline"):
                request.deadline.CopyFrom(ack.deadline)
            effects.append(Cancel(job_id, request))
            # The order to stop does not say that the report itself is lost: its event number does.
            if ack.seq == 0:
                answer = GONE
                if ending and entry.body != "stopped":
                    successor = wire.Report(stopped=wire.Stopped())
        effects += _answered(entry, answer)
        if successor is not None:
            lease.append(_Entry(successor, None))
        elif ending:
            del self._leases[job_id]
            return [*effects, Ended(job_id)]
        self._make_room(job_id, lease)
        return effects

    def cancel(self, order: wire.CancelOrder) -> list[Effect[T]]:
        """The engine wants a job called off."""
        lease = self._leases.get(order.job_id)
        if lease is None or lease.token != order.lease_token:
            return []
        return [Cancel(order.job_id, order.request)]

    def lost(self, gone: wire.LeaseLost) -> list[Effect[T]]:
        """The engine took a lease away."""
        lease = self._leases.get(gone.job_id)
        if lease is None or lease.token != gone.lease_token:
            return []
        return self._drop(gone.job_id, gone.reason)

    def _drop(self, job_id: str, reason: str) -> list[Effect[T]]:
        lease = self._leases.pop(job_id)
        if lease.ready:
            self._ready.remove(job_id)
        effects: list[Effect[T]] = []
        for entry in lease.queue:
            effects += _answered(entry, GONE)
        return [*effects, Lost(job_id, reason)]

    def _make_room(self, job_id: str, lease: _Lease[T]) -> None:
        # Not at the first gap: in a flood every second line would be the one that says so.
        if lease.logged <= LOG_WINDOW // 2 and not lease.ending:
            lease.own_up()
        self._mark_ready(job_id, lease)

    def _mark_ready(self, job_id: str, lease: _Lease[T]) -> None:
        if self._online and not lease.ready and lease.sent < min(len(lease.queue), MAX_IN_FLIGHT):
            lease.ready = True
            self._ready.append(job_id)


def _supersede(lease: _Lease[T]) -> None:
    # Only log lines may be overtaken: a checkpoint must not be stored before the progress that led to it.
    for at in range(len(lease.queue) - 1, -1, -1):
        entry = lease.queue[at]
        if entry.number or entry.body not in ("log", "progress"):
            return
        if entry.body == "progress":
            lease.remove(at)
            return


def _answered(entry: _Entry[T], answer: Answer) -> list[Effect[T]]:
    return [] if entry.tag is None else [Answered(entry.tag, answer)]
