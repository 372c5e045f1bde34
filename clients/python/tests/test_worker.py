"""Handlers on a real engine: what they say, how they end, how they are stopped."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import http.server
import threading
import time
import unittest
from typing import Any

from tests.support import DEADLINE, Engine, OnAnEngine, log_of, scratch, until, working
from tidegate import (
    Cancelled,
    Client,
    Context,
    Event,
    JobFailed,
    JobReleased,
    JobState,
    ReportRejected,
    SyncContext,
    Worker,
    types,
)


class WithAWorker(OnAnEngine):
    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        self.worker = Worker(self.engine.address, grace=1)

    async def run_job(self, kind: str, input: Any = None, **options: Any) -> list[Event]:
        job = await self.client.submit(kind, input, options)
        return await log_of(self.client, job.job_id)


class Saying(WithAWorker):
    async def test_everything_that_a_handler_says_is_in_the_log(self) -> None:
        @self.worker.kind("says", description="Says everything.", input_schema={"type": "object"}, example={"a": 1})
        async def says(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:
            ctx.progress(50, done=2**53 + 1, total=2**63, unit="rows", step=1, steps=2, step_name="half", eta=1.5, message="m")
            ctx.log("careful", level="warn", source="here")
            await ctx.checkpoint("point", b"\x00\xff")
            await ctx.custom("chart", {"points": [1, 2]})
            return {"input": input, "attempt": ctx.attempt, "owner": ctx.owner, "resume": ctx.resume}

        async with working(self.worker, self.client):
            events = await self.run_job("says", {"ä": [1.5, None]})
            [offer] = await self.client.kinds()
        said = [event.what for event in events if not isinstance(event.what, types.StateChanged)]
        percent = types.Progress(50.0, 2**53 + 1, 2**63, "rows", 1, 2, "half", None, datetime.timedelta(seconds=1.5), "m")
        self.assertEqual(
            said,
            [
                percent,
                types.Log("warn", "careful", "here"),
                types.Checkpoint("point", 2),
                types.Custom("chart", {"points": [1, 2]}),
                types.Completed({"input": {"ä": [1.5, None]}, "attempt": 1, "owner": said[-1].result["owner"], "resume": None}),  # type: ignore[union-attr]
            ],
        )
        expected = types.KindOffer("says", "Says everything.", {"type": "object"}, {"a": 1}, True)
        self.assertEqual(offer, expected)

    async def test_j37_what_is_too_large_is_the_calls_error_and_the_job_goes_on(self) -> None:
        @self.worker.kind("large")
        async def large(ctx: Context, input: Any) -> list[str]:
            refusals = []
            for call in (
                ctx.checkpoint("big", bytes(65537)),
                ctx.custom("big", "x" * 65535),
                ctx.custom("error", 1),
                ctx.custom("nan", float("nan")),
            ):
                try:
                    await call
                except ReportRejected as error:
                    refusals.append(str(error))
            await ctx.checkpoint("largest", bytes(65536))
            return refusals

        @self.worker.kind("large-result")
        async def large_result(ctx: Context, input: Any) -> str:
            return "x" * (256 * 1024)

        async with working(self.worker, self.client):
            events = await self.run_job("large")
            what = events[-1].what
            assert isinstance(what, types.Completed), what
            self.assertEqual(
                what.result[:3],
                [
                    "a checkpoint has 65537 bytes; the engine takes 65536",
                    "a custom event has 65537 bytes; the engine takes 65536",
                    "an event cannot be named 'error'",
                ],
            )
            self.assertIn("not JSON", what.result[3])
            end = (await self.run_job("large-result"))[-1].what
            assert isinstance(end, types.Failed), end
            self.assertEqual((end.code, end.retryable), ("result_too_large", False))

    async def test_e36_a_flood_of_lines_is_cut_and_says_so_but_drain_loses_none(self) -> None:
        @self.worker.kind("flood")
        async def flood(ctx: Context, input: dict[str, Any]) -> None:
            for i in range(3000):
                ctx.log(f"{i}")
                if input["drain"]:
                    await ctx.drain()

        async with working(self.worker, self.client):
            for drain in (True, False):
                events = await self.run_job("flood", {"drain": drain})
                lines = [event.what.text for event in events if isinstance(event.what, types.Log)]
                said = [line for line in lines if line.isdigit()]
                left_out = sum(int(line.split()[0]) for line in lines if "left out" in line)
                self.assertEqual(len(said) + left_out, 3000)
                self.assertEqual(said, sorted(said, key=int))
                self.assertEqual(left_out == 0, drain)


class Ending(WithAWorker):
    async def test_j9_failures_are_typed_and_show_no_traceback(self) -> None:
        @self.worker.kind("fails")
        async def fails(ctx: Context, input: str) -> Any:
            match input:
                case "known":
                    raise JobFailed("not_found", "there is no such thing")
                case "unknown":
                    raise KeyError("secret place")
                case "exit":
                    raise SystemExit(3)
                case "inner":
                    inner: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    inner.cancel()
                    await inner
                case "result":
                    return {1j: 1}

        async with working(self.worker, self.client):
            for input, code, message, retryable in (
                ("known", "not_found", "there is no such thing", False),
                ("unknown", "error", "KeyError: 'secret place'", True),
                ("exit", "error", "SystemExit: 3", True),
                ("inner", "stopped", "the handler stopped although nobody told it to", True),
                (
                    "result",
                    "result_invalid",
                    "the result is not JSON: keys must be str, int, float, bool or None, not complex",
                    False,
                ),
            ):
                with self.subTest(input):
                    with self.assertLogs("tidegate.worker") as logs:
                        events = await self.run_job("fails", input)
                    self.assertEqual(events[-1].what, types.Failed(code, message, retryable))
                    self.assertNotIn("Traceback", repr(events))
                    self.assertEqual("Traceback" in "".join(logs.output), code in ("error", "stopped"))

    async def test_a_retryable_failure_is_tried_again_from_its_checkpoint(self) -> None:
        @self.worker.kind("stumbles")
        async def stumbles(ctx: Context, input: Any) -> Any:
            if ctx.resume is None:
                await ctx.checkpoint("half", b"half")
                raise JobFailed("busy", "not now", retryable=True)
            return [ctx.attempt, ctx.resume.name, ctx.resume.data.decode()]

        async with working(self.worker, self.client):
            events = await self.run_job("stumbles", max_attempts=2, backoff=0.05)
        self.assertEqual(events[-1].what, types.Completed([2, "half", "half"]))

    async def test_a_job_that_is_given_back_is_run_again_and_failed_nothing(self) -> None:
        @self.worker.kind("hands-back")
        async def hands_back(ctx: Context, input: Any) -> int:
            if ctx.attempt == 1:
                raise JobReleased("wrong machine")
            return ctx.attempt

        async with working(self.worker, self.client):
            events = await self.run_job("hands-back")
        self.assertEqual(events[-1].what, types.Completed(2))

    async def test_a_plain_function_runs_in_a_thread_and_may_block(self) -> None:
        @self.worker.kind("blocks")
        def blocks(ctx: SyncContext, input: Any) -> Any:
            ctx.progress(10)
            for i in range(600):
                ctx.log(f"{i}")
            ctx.checkpoint("point", b"1")
            ctx.custom("chart", [1])
            with contextlib.suppress(ReportRejected):
                ctx.custom("error", [1])
            # Longer than the lease: only a blocked loop would lose it.
            time.sleep(3)
            return threading.current_thread() is not threading.main_thread()

        async with working(self.worker, self.client):
            events = await self.run_job("blocks")
        self.assertEqual(events[-1].what, types.Completed(True))
        self.assertEqual(events[-1].attempt, 1)
        self.assertEqual([e.what.text for e in events if isinstance(e.what, types.Log)], [f"{i}" for i in range(600)])


class Stopping(WithAWorker):
    async def cancelled(self, kind: str) -> list[Event]:
        """Submits a job, cancels it at its first progress, and returns its log."""
        job = await self.client.submit(kind)
        async for event in self.client.watch(job.job_id):
            if isinstance(event.what, types.Progress):
                after = await self.client.cancel(job.job_id, "a test")
                self.assertTrue(after.cancel_requested)
                break
        events = await log_of(self.client, job.job_id)
        ends = [event.what for event in events if event.is_terminal]
        self.assertEqual([type(end) for end in ends], [types.JobCancelled], "exactly one end")
        self.assertEqual((await self.client.get(job.job_id)).state, JobState.CANCELLED)
        return events

    async def test_j10_a_cancellation_is_raised_and_leaves_time_to_clean_up(self) -> None:
        reasons = []

        @self.worker.kind("waits")
        async def waits(ctx: Context, input: Any) -> None:
            ctx.progress(1)
            try:
                await asyncio.sleep(3600)
            finally:
                reasons.append(ctx.stop_reason)
                ctx.log("cleaning up")
                await asyncio.sleep(0.1)
                ctx.log("clean")

        async with working(self.worker, self.client):
            events = await self.cancelled("waits")
        self.assertEqual([e.what.text for e in events if isinstance(e.what, types.Log)], ["cleaning up", "clean"])
        [reason] = reasons
        assert reason is not None
        self.assertEqual((reason.why, reason.reason), ("cancelled", "a test"))

    async def test_j10_a_thread_learns_it_from_its_next_call(self) -> None:
        said = []

        @self.worker.kind("thread-waits")
        def thread_waits(ctx: SyncContext, input: Any) -> None:
            ctx.progress(1)
            try:
                while True:
                    ctx.sleep(3600)
            except Cancelled:
                ctx.log("cleaning up")
                said.append(ctx.stopping)

        async with working(self.worker, self.client):
            events = await self.cancelled("thread-waits")
        self.assertEqual([e.what.text for e in events if isinstance(e.what, types.Log)], ["cleaning up"])
        self.assertEqual(said, [True])

    async def test_j10_a_cancelled_job_stays_cancelled_whatever_it_returns(self) -> None:
        @self.worker.kind("returns")
        async def returns(ctx: Context, input: Any) -> str:
            ctx.progress(1)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            return "done all the same"

        async with working(self.worker, self.client):
            await self.cancelled("returns")

    async def test_j11_a_handler_that_ignores_its_cancellation_is_cut_off(self) -> None:
        worker = self.worker = Worker(self.engine.address, capacity=1, grace=1)
        released, late = asyncio.Event(), []

        @worker.kind("deaf")
        async def deaf(ctx: Context, input: Any) -> None:
            ctx.progress(1)
            while not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()
            # By then the job is nobody's: this goes nowhere.
            ctx.log("too late")
            try:
                await ctx.checkpoint("late", b"")
            except Cancelled:
                late.append("refused")

        @worker.kind("next")
        async def following(ctx: Context, input: Any) -> str:
            return "the slot is free"

        async with working(worker, self.client):
            events = await self.cancelled("deaf")
            self.assertEqual((await self.run_job("next"))[-1].what, types.Completed("the slot is free"))
            released.set()
            await until(lambda: late, "the deaf handler goes on")
        self.assertEqual(late, ["refused"])
        self.assertEqual(await log_of(self.client, (await self.client.list(kind="deaf")).jobs[0].job_id), events)

    async def test_j36_a_shutdown_gives_running_jobs_back(self) -> None:
        @self.worker.kind("long")
        async def long(ctx: Context, input: Any) -> Any:
            if ctx.resume is not None:
                return ctx.resume.name
            await ctx.checkpoint("half", b"")
            await asyncio.sleep(3600)

        job = await self.submit_and_see("long")
        second = Worker(self.engine.address)
        second.kind("long")(long)
        async with working(second, self.client):
            events = await log_of(self.client, job)
        self.assertEqual(events[-1].what, types.Completed("half"))
        self.assertFalse([e for e in events if isinstance(e.what, types.Failed)])

    async def submit_and_see(self, kind: str) -> str:
        """Runs the worker until the job has saved a checkpoint, then shuts it down."""
        async with working(self.worker, self.client):
            job = await self.client.submit(kind)
            async for event in self.client.watch(job.job_id):
                if isinstance(event.what, types.Checkpoint):
                    break
        return job.job_id


class Elsewhere(unittest.IsolatedAsyncioTestCase):
    async def test_j37_a_web_server_at_the_address_is_named(self) -> None:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        address = f"http://127.0.0.1:{server.server_port}"
        worker = Worker(address)
        worker.kind("a")(lambda ctx, input: None)
        shutdown = asyncio.Event()
        with self.assertLogs("tidegate.worker", "WARNING") as logs:
            task = asyncio.create_task(worker.serve(shutdown))
            await until(lambda: logs.output, "the worker says something")
            shutdown.set()
            await asyncio.wait_for(task, DEADLINE)
        self.assertIn(address, logs.output[0])
        self.assertIn("no Tidegate engine answers by gRPC", logs.output[0])

    async def test_j7_a_handler_that_blocks_the_loop_is_observable(self) -> None:
        engine = Engine(scratch(self), lease_seconds=2)
        self.addAsyncCleanup(engine.end)
        await engine.start()
        worker = Worker(engine.address)

        @worker.kind("hogs")
        async def hogs(ctx: Context, input: Any) -> None:
            time.sleep(1.5)  # noqa: ASYNC251

        async with Client(engine.address) as client:
            with self.assertLogs("tidegate.worker", "WARNING") as logs:
                async with working(worker, client):
                    job = await client.submit("hogs")
                    self.assertEqual((await client.wait(job.job_id)).state, JobState.COMPLETED)
        self.assertIn("the event loop stood still for", logs.output[0])


if __name__ == "__main__":
    unittest.main()
