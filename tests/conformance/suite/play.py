"""One case's stage: its worker process, its engines, its leases, and the way to fail.

Everything that a case waits for has a deadline and a name, so that what did not happen can be said. Rules that hold in
every case (numbers, tokens, silence after the end) are checked on every message by lease.py and engine.py; they call
Play.fail, which ends the case with that diagnosis.
"""

import asyncio
import base64
import itertools
import json
import os
import pathlib
import tempfile

from .contract import v1
from .engine import Engine
from .lease import Lease, text
from .process import WorkerProcess

# Seconds to wait for anything that has no bound of its own: far beyond what a healthy worker needs, even on a busy machine.
PATIENCE = 30.0


class Violation(Exception):
    """What the worker did wrong."""


class Play:
    def __init__(self, command: list[str], verbose: bool):
        self.command = command
        self.verbose = verbose
        self.directory = tempfile.TemporaryDirectory(prefix="tidegate-conformance-", ignore_cleanup_errors=True)
        self.scratch = pathlib.Path(self.directory.name)
        self.leases: dict[str, Lease] = {}
        self.closers = []
        self.worker: WorkerProcess | None = None
        self.violation: str | None = None
        self.task = asyncio.current_task()
        self.protocol: list[str] = []
        self._files = itertools.count(1)

    # -- failing ---------------------------------------------------------------------------------------------------

    def fail(self, diagnosis: str) -> None:
        """Ends the case from wherever the violation was seen; the first diagnosis counts."""
        if self.violation is None:
            self.violation = diagnosis
            self.task.cancel()

    def note(self, line: str) -> None:
        """Keeps a line of the conversation, for --verbose and for failures."""
        self.protocol.append(line)
        if self.verbose:
            print(f"    {line}", flush=True)

    async def wait(self, awaitable, what: str, patience: float = PATIENCE):
        """The awaitable's result; a violation if it does not come in time, or if the worker exits instead."""
        waiting = asyncio.ensure_future(awaitable)
        exited = asyncio.ensure_future(self.worker.exited.wait()) if self.worker and not self.worker.may_exit else None
        futures = {waiting, exited} - {None}
        try:
            done, _ = await asyncio.wait(futures, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if waiting in done:
                return waiting.result()
            if done:
                raise Violation(f"the worker exited with code {self.worker.code} instead: expected {what}")
            raise Violation(f"not within {patience:g} s: {what}")
        finally:
            for future in futures:
                future.cancel()

    async def until(self, condition, what: str, patience: float = PATIENCE) -> None:
        """Waits until the condition holds."""

        async def poll():
            while not condition():
                await asyncio.sleep(0.01)

        await self.wait(poll(), what, patience)

    async def elapsed(self, seconds: float) -> None:
        """Lets time pass, where what is to be seen is that nothing happens."""
        await self.wait(asyncio.sleep(seconds), f"{seconds} s", seconds + PATIENCE)

    # -- the stage -------------------------------------------------------------------------------------------------

    async def engine(self, port: int = 0) -> Engine:
        engine = Engine(self)
        await engine.start(port)
        self.closers.append(engine.close)
        return engine

    async def start(self, *engines, capacity: int = 4, grace: int = 5) -> WorkerProcess:
        """Starts the worker for engines, each with a `uri`."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TIDEGATE_")}
        environment |= {
            "TIDEGATE_ENGINE": ",".join(engine.uri for engine in engines),
            "TIDEGATE_CAPACITY": str(capacity),
            "TIDEGATE_GRACE_SECONDS": str(grace),
        }
        self.worker = WorkerProcess(self.command, environment, self.scratch, self.note)
        self.closers.append(self.worker.close)
        await self.worker.start()
        return self.worker

    async def connected(self, *, capacity: int = 4, grace: int = 5, **welcome):
        """An engine, a worker, and the worker's stream, welcomed."""
        engine = await self.engine()
        await self.start(engine, capacity=capacity, grace=grace)
        stream = await engine.accept()
        await stream.welcome(**welcome)
        return engine, stream

    def gate(self) -> pathlib.Path:
        """A file for `await_file` that does not exist yet; touch() it to let the handler pass."""
        return self.scratch / f"gate-{next(self._files)}"

    def job(self, job_id: str, *steps: dict, attempt: int = 1, checkpoint=None, kind: str = "conformance") -> Lease:
        """A job to assign. `checkpoint` is (name, bytes) or None."""
        assignment = v1.Assignment(
            job_id=job_id,
            kind=kind,
            attempt=attempt,
            lease_token=f"{attempt}-{job_id}-{len(self.leases)}",
            input_json=json.dumps({"steps": list(steps)}, ensure_ascii=False),
            tenant="tenant",
            owner="owner",
        )
        if checkpoint is not None:
            name, data = checkpoint
            assignment.checkpoint.name, assignment.checkpoint.data, assignment.checkpoint.size = name, data, len(data)
        lease = Lease(self, assignment)
        self.leases[lease.token] = lease
        return lease

    async def printed(self, lease: Lease, at: str, patience: float = PATIENCE, **fields) -> dict:
        """The worker's first line about this run of the job with `at` and the fields."""
        wanted = {"job": lease.job_id, "attempt": lease.attempt, "at": at} | fields

        def find():
            return next((line for line in self.worker.lines if wanted.items() <= line.items()), None)

        await self.until(lambda: find() is not None, f"the worker's stdout line {json.dumps(wanted)}", patience)
        return find()

    def has_printed(self, lease: Lease, at: str, **fields) -> bool:
        wanted = {"job": lease.job_id, "attempt": lease.attempt, "at": at} | fields
        return any(wanted.items() <= line.items() for line in self.worker.lines)

    async def silenced(self, lease: Lease, stream, why: str) -> None:
        """Waits until the lost lease's handler is left, and proves by another job that nothing more is said of it.

        For handlers that wait: no report of theirs is on its way, so that the first word is one too many.
        """
        lease.silence(why)
        await self.printed(lease, "end", patience=10)
        await self.runs_another(stream)

    async def runs_another(self, stream, why: str = "the slot is free again") -> None:
        """Runs one more job to its end on `stream`. What was said before it on the stream has arrived by then."""
        other = self.job(f"another-{next(self._files)}", {"complete": "another"})
        await stream.assign(other)
        _, end = await other.play_out(f"the end of a job assigned because {why}")
        if end.WhichOneof("body") != "complete":
            raise Violation(f"a job assigned because {why} ended with {text(end)}")

    async def close(self) -> None:
        try:
            for closer in reversed(self.closers):
                await closer()
        finally:
            self.directory.cleanup()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
