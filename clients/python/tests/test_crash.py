"""Violence: workers killed and paused, engines killed, connections cut, while real imports run."""

from __future__ import annotations

import asyncio
import csv
import re
import signal
import sqlite3
import unittest
from typing import Any

from tests.support import (
    AIRPORTS,
    Engine,
    OnAnEngine,
    Process,
    Proxy,
    csv_worker,
    free_port,
    log_of,
    offered,
    scratch,
    until,
    working,
)
from tidegate import Client, Context, Event, Job, Worker, types

KIND = "csv-import-python"
#: Some five seconds of work in 68 batches: time enough to be hit in the middle.
SLOWLY = {"path": AIRPORTS.name, "batch_rows": 50, "rows_per_second": 700}


class Imports(OnAnEngine):
    def worker(self, name: str, engine: str | None = None) -> Process:
        process = csv_worker(engine or self.engine.address, self.scratch, name)
        self.addAsyncCleanup(process.end)
        return process

    async def begin(self) -> Job:
        """Submits an import and returns once a part of it is done."""
        await offered(self.client, KIND)
        job = await self.client.submit(KIND, SLOWLY)
        await self.reaches(job, 10)
        return job

    async def reaches(self, job: Job, checkpoints: int) -> None:
        seen = 0
        async for event in self.client.watch(job.job_id):
            seen += isinstance(event.what, types.Checkpoint)
            if seen >= checkpoints:
                return
        raise AssertionError("the job ended too early")

    async def is_exact(self, job: Job) -> list[Event]:
        """Waits for the end; the table must be the file, row by row."""
        events = await log_of(self.client, job.job_id)
        with AIRPORTS.open(newline="") as file:
            [_, *expected] = csv.reader(file)
        self.assertEqual(events[-1].what, types.Completed({"rows": len(expected), "table": "airports", "database": "imports.db"}))
        database = sqlite3.connect(self.scratch / "imports.db")
        self.addCleanup(database.close)
        rows = [list(row) for row in database.execute("SELECT * FROM airports ORDER BY rowid")]
        self.assertEqual(rows, expected)
        return events

    async def test_j2_a_killed_workers_import_goes_on_at_another(self) -> None:
        first = self.worker("first")
        job = await self.begin()
        await first.end(signal.SIGKILL)
        self.worker("second")
        events = await self.is_exact(job)
        attempts = [event.attempt for event in events if isinstance(event.what, types.Checkpoint)]
        self.assertEqual(set(attempts), {1, 2})
        self.assertEqual(attempts, sorted(attempts))
        resumed = [e.what.text for e in events if isinstance(e.what, types.Log) and e.attempt == 2]
        self.assertRegex(resumed[0], r"^goes on after row \d+, byte \d+$")

    async def test_j3_the_last_acknowledged_checkpoint_is_there_after_a_kill(self) -> None:
        first = self.worker("first")
        job = await self.begin()
        await first.end(signal.SIGKILL)
        seen: list[str] = []
        resumed: list[str] = []
        takes_over = Worker(self.engine.address)

        @takes_over.kind(KIND)
        async def go_on(ctx: Context, input: Any) -> None:
            assert ctx.resume is not None
            resumed.append(ctx.resume.name)

        async with working(takes_over, self.client):
            for event in await log_of(self.client, job.job_id):
                if isinstance(event.what, types.Checkpoint):
                    seen.append(event.what.name)
        self.assertEqual(resumed, seen[-1:])

    async def test_j1_a_worker_paused_past_its_lease_writes_nothing_any_more(self) -> None:
        first = self.worker("first")
        job = await self.begin()
        first.send(signal.SIGSTOP)
        second = self.worker("second")
        # Of the second attempt: the lease of the first is over.
        await until(lambda: re.search("begins, attempt 2", second.output), "the second worker has the job")
        first.send(signal.SIGCONT)
        # From the engine, or, if its thread is the first to go on, from the database.
        learns = ": lost: |: ends with released"
        await until(lambda: re.search(learns, first.output), "the first worker learns that it lost the job")
        events = await self.is_exact(job)
        attempts = [event.attempt for event in events]
        self.assertEqual(attempts, sorted(attempts), "the first attempt wrote after the second began")

    async def test_j5_a_stream_that_breaks_and_comes_back_keeps_its_job(self) -> None:
        proxy = Proxy(self.engine.port)
        await proxy.start()
        self.addAsyncCleanup(proxy.end)
        self.worker("only", proxy.address)
        job = await self.begin()
        for checkpoints in (20, 30, 40):
            proxy.cut()
            await self.reaches(job, checkpoints)
        events = await self.is_exact(job)
        self.assertGreaterEqual(proxy.accepted, 4)
        self.assertEqual({event.attempt for event in events if isinstance(event.what, types.Checkpoint)}, {1})
        names = [event.what.name for event in events if isinstance(event.what, types.Checkpoint)]
        self.assertEqual(names, sorted(set(names), key=lambda name: int(name.split()[1])), "one is there twice")

    async def test_j4_an_engine_killed_in_the_middle_loses_and_doubles_nothing(self) -> None:
        worker = self.worker("only")
        job = await self.begin()
        for checkpoints in (20, 30):
            await self.engine.end(signal.SIGKILL)
            await until(lambda: "disconnected" in worker.output or "no Tidegate engine" in worker.output, "the worker notices")
            await self.engine.start()
            await self.reaches(job, checkpoints)
        events = await self.is_exact(job)
        names = [event.what.name for event in events if isinstance(event.what, types.Checkpoint)]
        self.assertEqual(len(names), len(set(names)), "a checkpoint is there twice")

    async def test_j10_a_cancelled_import_stops_and_leaves_whole_batches(self) -> None:
        self.worker("only")
        job = await self.begin()
        await self.client.cancel(job.job_id, "wrong file")
        end = (await log_of(self.client, job.job_id))[-1].what
        assert isinstance(end, types.JobCancelled), end
        self.assertEqual(end.reason, "wrong file")
        database = sqlite3.connect(self.scratch / "imports.db")
        self.addCleanup(database.close)
        [(rows,)] = database.execute("SELECT count(*) FROM airports")
        self.assertEqual(database.execute("SELECT rows, done FROM imports").fetchall(), [(rows, 0)])
        self.assertEqual(rows % SLOWLY["batch_rows"], 0)

    async def test_j36_sigterm_gives_the_import_back_and_exits_with_0(self) -> None:
        first = self.worker("first")
        job = await self.begin()
        # The grace time of 5 s would do: a second signal would end it at once, one lets it go on.
        first.send(signal.SIGTERM)
        self.worker("second")
        await self.is_exact(job)
        await until(lambda: first.process.poll() is not None, "the first worker ends")
        self.assertEqual(first.process.returncode, 0)


class SeveralEngines(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.scratch = scratch(self)
        port = free_port()
        arguments = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(self.scratch)]
        self.redis = Process(arguments, self.scratch / "redis.log")
        self.addAsyncCleanup(self.redis.end)
        await until(lambda: "Ready to accept connections" in self.redis.output, "Redis is ready")
        self.engines = []
        for name in "ab":
            (self.scratch / name).mkdir()
            engine = Engine(self.scratch / name, f"--redis=redis://127.0.0.1:{port}")
            self.addAsyncCleanup(engine.end)
            await engine.start()
            self.engines.append(engine)
        self.addresses = ",".join(engine.address for engine in self.engines)

    async def test_j36_a_draining_or_killed_engine_is_left_and_jobs_and_watchers_go_on(self) -> None:
        gate = asyncio.Event()
        worker = Worker(self.addresses)

        @worker.kind("steps")
        async def steps(ctx: Context, input: Any) -> int:
            step = 0
            while not gate.is_set():
                step += 1
                await ctx.checkpoint(f"{step}", b"")
                await asyncio.sleep(0.02)
            return ctx.attempt

        async with Client(self.addresses) as client, working(worker, client):
            job = await client.submit("steps")
            events: list[Event] = []

            async def watch() -> None:
                events.extend([event async for event in client.watch(job.job_id)])

            async def goes_on() -> None:
                before = (await client.get(job.job_id)).last_seq
                while (await client.get(job.job_id)).last_seq < before + 10:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

            watching = asyncio.create_task(watch())
            for number in (signal.SIGTERM, signal.SIGKILL):
                for engine in self.engines:
                    await asyncio.wait_for(goes_on(), 20)
                    await engine.end(number)
                    await asyncio.wait_for(goes_on(), 20)
                    await engine.start()
            gate.set()
            await asyncio.wait_for(watching, 20)
        self.assertEqual([event.seq for event in events], list(range(1, len(events) + 1)))
        self.assertEqual(events[-1].what, types.Completed(1), "the job was begun anew")


if __name__ == "__main__":
    unittest.main()
