"""What the tests run against: real engines, real worker processes, and a proxy that cuts connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import AsyncIterator, Callable

from tidegate import Client, Event, Worker

PYTHON = pathlib.Path(__file__).resolve().parents[1]
ROOT = PYTHON.parents[1]
AIRPORTS = ROOT / "worker" / "examples" / "airports.csv"
#: Far beyond what anything here takes, in seconds.
DEADLINE = 60.0


def binary(name: str) -> str:
    """A binary of this checkout's debug build, or of TIDEGATE_BIN_DIR."""
    path = pathlib.Path(os.environ.get("TIDEGATE_BIN_DIR", ROOT / "target" / "debug")) / name
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `cargo build --workspace`, or the whole of `tests/run`")
    return str(path)


def free_port() -> int:
    """A port below those that the kernel gives to outgoing connections: it stays free while its server is being restarted."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def scratch(test: unittest.TestCase) -> pathlib.Path:
    """A directory for one test."""
    directory = tempfile.TemporaryDirectory(prefix="tidegate-python-")
    test.addCleanup(directory.cleanup)
    return pathlib.Path(directory.name)


async def until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(0.01)


class Process:
    """A child process whose output goes to a file."""

    def __init__(self, command: list[str], log: pathlib.Path, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        environment = {**kept, "PYTHONPATH": str(PYTHON), **environment}
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it and returns its exit code."""
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(number)
        try:
            await until(lambda: self.process.poll() is not None, f"{self.process.args!r} ends", 30)
        except AssertionError:
            self.process.kill()
            self.process.wait()
            raise
        return self.process.returncode


class Engine:
    """A `job-engine` on a port of its own; it can be killed and started again."""

    def __init__(self, scratch: pathlib.Path, *arguments: str, lease_seconds: int = 2) -> None:
        self.port, self.admin = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._scratch = scratch
        self._command = [
            binary("job-engine"),
            f"--grpc-listen=127.0.0.1:{self.port}",
            f"--engine-admin-listen=127.0.0.1:{self.admin}",
            *(arguments or (f"--data-dir={scratch / 'data'}",)),
        ]
        self._lease_seconds = lease_seconds
        self.process: Process | None = None

    async def start(self) -> None:
        self.process = Process(
            self._command,
            self._scratch / f"engine-{self.port}.log",
            TIDEGATE_LEASE_SECONDS=str(self._lease_seconds),
            TIDEGATE_CANCEL_GRACE_SECONDS="3",
        )
        await until(self._accepts, "the engine accepts connections")

    def _accepts(self) -> bool:
        assert self.process is not None
        if self.process.process.poll() is not None:
            raise AssertionError(f"the engine ended:\n{self.process.output}")
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            await self.process.end(number)
            self.process = None


class OnAnEngine(unittest.IsolatedAsyncioTestCase):
    """Tests that have an engine, a scratch directory, and a client."""

    async def asyncSetUp(self) -> None:
        self.scratch = scratch(self)
        self.engine = Engine(self.scratch)
        self.addAsyncCleanup(self.engine.end)
        await self.engine.start()
        self.client = Client(self.engine.address)
        self.addAsyncCleanup(self.client.close)


class Proxy:
    """Forwards TCP connections to a port; can cut them all, and refuse new ones until it is healed."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._refusing = False
        self.accepted = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self.accepted += 1
        try:
            there, out = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, out}
        await asyncio.gather(self._pump(reader, out), self._pump(there, writer))
        self._writers -= {writer, out}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.transport.abort()

    def cut(self, refuse: bool = False) -> None:
        self._refusing = refuse
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        self._refusing = False

    async def end(self) -> None:
        self.cut(refuse=True)
        self._server.close()


@contextlib.asynccontextmanager
async def working(worker: Worker, client: Client) -> AsyncIterator[asyncio.Event]:
    """Runs a worker in this process until the block ends; begins once the engine knows its kinds."""
    shutdown = asyncio.Event()
    task = asyncio.create_task(worker.serve(shutdown))
    try:
        await offered(client, *worker._plan.kinds)
        yield shutdown
    finally:
        shutdown.set()
        await asyncio.wait_for(task, 30)


async def offered(client: Client, *kinds: str) -> None:
    """Waits until live workers offer these kinds."""
    deadline = time.monotonic() + DEADLINE
    while True:
        live = {offer.kind for offer in await client.kinds() if offer.live}
        if live.issuperset(kinds):
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"nobody offers {kinds}")
        await asyncio.sleep(0.02)


async def log_of(client: Client, job_id: str) -> list[Event]:
    """A job's whole log, once it has ended; its numbers have no hole."""

    async def read() -> list[Event]:
        return [event async for event in client.watch(job_id)]

    events = await asyncio.wait_for(read(), DEADLINE)
    assert [event.seq for event in events] == list(range(1, len(events) + 1)), [event.seq for event in events]
    return events


def csv_worker(engine: str, scratch: pathlib.Path, name: str) -> Process:
    """The example of CSV imports, as a process of its own; it reads the shipped example file."""
    database = scratch / "imports.db"
    script = str(PYTHON / "examples" / "csv_import.py")
    command = [sys.executable, script, f"--dir={AIRPORTS.parent}", f"--database={database}", f"--engine={engine}"]
    return Process(command, scratch / f"{name}.log")
