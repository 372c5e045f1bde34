"""One lease as the engine sees it: what was reported under it so far, and the rules that hold for every report.

A lease outlives streams. Per stream it knows which number must come next: 1 after the assignment, `last_report` + 1 after
a Welcome that resumed it.
"""

import asyncio
import json
import math

from .contract import CANCELLED, ENDS, LEASE_LOST, OK, REJECTED

# Far beyond 2^53: a worker that keeps event numbers in floating point loses nothing by it, one that checks them may.
FIRST_SEQ = 2**53


def text(report) -> str:
    """A report in one short line, for people."""
    kind = report.WhichOneof("body")
    body = str(getattr(report, kind)).replace("\n", " ").strip() if kind else ""
    return f"report {report.number} {kind} {{{body if len(body) < 120 else body[:120] + '…'}}}"


class Lease:
    def __init__(self, play, assignment):
        self.play = play
        self.assignment = assignment
        self.job_id, self.token, self.attempt = assignment.job_id, assignment.lease_token, assignment.attempt
        self.stream = None
        self.next = 1
        self.resumed_at = 0
        self.inbox: asyncio.Queue = asyncio.Queue()
        self.seen: dict[int, object] = {}
        self.ended = False
        self.silent: str | None = None

    def name(self) -> str:
        return f"job {self.job_id!r} (token {self.token!r})"

    # -- told by the stream ----------------------------------------------------------------------------------------

    def assigned(self, stream) -> None:
        self.stream, self.next, self.resumed_at = stream, 1, 0

    def resumed(self, stream, last_report: int) -> None:
        self.stream, self.next, self.resumed_at = stream, last_report + 1, last_report
        # What was sent on the old stream and not stored comes again: only that may be waited for from now on.
        self.inbox = asyncio.Queue()
        if not any(number <= last_report and r.WhichOneof("body") in ENDS for number, r in self.seen.items()):
            self.ended = False

    def silence(self, why: str) -> None:
        """From here on, any report under this lease is a violation."""
        self.silent = why

    def on_report(self, stream, report) -> None:
        """Checks a report against what came before."""
        fail, what = self.play.fail, text(report)
        kind = report.WhichOneof("body")
        if report.job_id != self.job_id:
            fail(f"{what} of {self.name()} names the job {report.job_id!r}")
        elif kind is None:
            fail(f"{what} of {self.name()} has no body")
        elif self.silent:
            fail(f"{what} of {self.name()} was sent although {self.silent}")
        elif stream is not self.stream:
            fail(f"{what} of {self.name()} came on a stream whose Welcome did not resume that lease")
        elif report.number != self.next:
            fail(self._misnumbered(report, what))
        elif self.ended:
            fail(f"{what} of {self.name()} was sent after the report that ended the job")
        elif report.number in self.seen and self.seen[report.number] != report:
            fail(f"{self.name()}: {text(self.seen[report.number])} was sent again as another: {what}")
        elif kind == "progress" and report.progress.HasField("percent") and not 0 <= report.progress.percent <= 100:
            fail(f"{what} of {self.name()}: a share is 0 to 100")
        elif kind == "progress" and report.progress.HasField("rate") and not math.isfinite(report.progress.rate):
            fail(f"{what} of {self.name()}: a rate is a finite number")
        elif kind in ("custom", "complete") and not _is_json(report.custom.json if kind == "custom" else report.complete.result_json):
            fail(f"{what} of {self.name()}: that is no JSON text")
        elif kind == "checkpoint" and report.checkpoint.size != len(report.checkpoint.data):
            fail(f"{what} of {self.name()}: the size is said to be {report.checkpoint.size}, it is {len(report.checkpoint.data)}")
        else:
            self.seen[report.number] = report
            self.next += 1
            self.ended = kind in ENDS
            self.inbox.put_nowait(report)

    def _misnumbered(self, report, what: str) -> str:
        if report.number <= self.resumed_at:
            return (
                f"{self.name()}: the Welcome said last_report {self.resumed_at}, so that reports up to it are stored, "
                f"but the worker sent again: {what}"
            )
        if report.number < self.next:
            return f"{self.name()}: {what} was sent a second time on one stream"
        return f"{self.name()}: expected report number {self.next}, got {what}: numbers have no hole"

    # -- used by cases ---------------------------------------------------------------------------------------------

    async def report(self, kind: str | None = None, patience: float | None = None):
        """The next report, of that kind if one is given. Not answered."""
        expected = f"the next report of {self.name()}" + (f", a {kind}" if kind else "")
        report = await self.play.wait(self.inbox.get(), expected, *([patience] if patience else []))
        if kind and report.WhichOneof("body") != kind:
            self.play.fail(f"{self.name()}: expected a {kind}, got {text(report)}")
            await asyncio.sleep(0)
        return report

    async def answer(self, report, result: int = OK, *, seq: int | None = None, message: str = "", deadline=None, token=None):
        """Answers a report on the lease's stream."""
        if seq is None:
            seq = 0 if result in (LEASE_LOST, REJECTED) else FIRST_SEQ + report.number
        if report.WhichOneof("body") in ENDS and token is None:
            # The worker owes one more end when its end was refused, or not stored because of a cancellation.
            stopped = report.WhichOneof("body") == "stopped"
            completed = report.WhichOneof("body") == "complete"
            if (result == REJECTED and completed) or (result == CANCELLED and seq == 0 and not stopped):
                self.ended = False
        await self.stream.ack(report, result, seq, message, deadline, token or self.token)

    async def store(self, kind: str | None = None):
        """The next report, answered OK."""
        report = await self.report(kind)
        await self.answer(report)
        return report

    async def play_out(self, what: str = "the job's end", patience: float | None = None):
        """Stores every report up to the end; returns those before, and the end."""
        before = []
        while True:
            report = await self.play.wait(self.inbox.get(), f"{what} ({self.name()})", *([patience] if patience else []))
            await self.answer(report)
            if report.WhichOneof("body") in ENDS:
                return before, report
            before.append(report)


def _is_json(value: str) -> bool:
    try:
        json.loads(value)
        return True
    except ValueError:
        return False
