"""Callers: submissions, lists, errors, and watching across lost connections."""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import unittest
from typing import Any

import grpc

from tests.support import DEADLINE, Engine, OnAnEngine, Proxy, free_port, log_of, scratch, working
from tidegate import (
    CallFailed,
    Client,
    Conflict,
    Context,
    Denied,
    Gap,
    InvalidRequest,
    JobFailed,
    JobState,
    NotFound,
    Unavailable,
    Worker,
    WrongState,
    types,
)

MISSING = "01890a5d-ac96-774b-bcce-b302099a8057"


class Credentials(unittest.IsolatedAsyncioTestCase):
    """An engine that asks who calls."""

    async def asyncSetUp(self) -> None:
        directory = scratch(self)
        self.config = directory / "tidegate.toml"
        self.keys = {name: f"tg_{secrets.token_urlsafe(32)}" for name in ("alice", "alice-2", "bob", "workers")}
        self.configure(*self.keys)
        self.engine = Engine(directory, f"--data-dir={directory / 'data'}", f"--config={self.config}")
        self.addAsyncCleanup(self.engine.end)
        await self.engine.start()

    def configure(self, *names: str) -> None:
        """Lets these in."""
        text = "[auth]\nreload_seconds = 1\n"
        for name in names:
            scopes = ["engine:work"] if name == "workers" else ["jobs:submit", "jobs:read", "jobs:control"]
            digest = hashlib.sha256(self.keys[name].encode()).hexdigest()
            subject = name.split("-")[0]
            text += f"[[auth.api_key]]\nname = '{name}'\nsha256 = '{digest}'\nsubject = '{subject}'\nscopes = {scopes}\n"
        new = self.config.with_suffix(".new")
        new.write_text(text)
        new.replace(self.config)

    def client(self, token: Any) -> Client:
        client = Client(self.engine.address, token=token)
        self.addAsyncCleanup(client.close)
        return client

    async def until_refused(self, client: Client, job_id: str) -> None:
        while True:
            await client.get(job_id)
            await asyncio.sleep(0.05)

    async def test_each_speaks_for_itself_with_a_token_that_may_change(self) -> None:
        for token in (None, "x", f"tg_{secrets.token_urlsafe(32)}"):
            with self.assertRaises(Denied) as refused:
                await self.client(token).list()
            self.assertEqual(refused.exception.code, grpc.StatusCode.UNAUTHENTICATED)
        good = "alice"
        alice, bob = self.client(lambda: self.keys[good]), self.client(self.keys["bob"])
        worker = Worker(self.engine.address, token=lambda: self.keys["workers"])
        go_on = asyncio.Event()

        @worker.kind("waits")
        async def waits(ctx: Context, input: Any) -> Any:
            ctx.log("begun")
            await go_on.wait()
            return input

        async with working(worker, alice):
            job = await alice.submit("waits", 7)
            self.assertEqual(job.owner, "alice")
            with self.assertRaises(NotFound):
                await bob.get(job.job_id)
            events = alice.watch(job.job_id)
            seen = [await anext(events)]
            good = "alice-2"
            # Taken back: the stream that was opened with the old key ends, and goes on with the new one.
            self.configure("alice-2", "bob", "workers")
            with self.assertRaises(Denied):
                await asyncio.wait_for(self.until_refused(self.client(self.keys["alice"]), job.job_id), DEADLINE)
            go_on.set()
            seen += [event async for event in events]
            self.assertEqual([event.seq for event in seen], list(range(1, len(seen) + 1)))
            self.assertEqual((await alice.get(job.job_id)).outcome, types.Completed(7))


class Calls(OnAnEngine):
    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        self.worker = Worker(self.engine.address)

        @self.worker.kind("echo")
        async def echo(ctx: Context, input: Any) -> Any:
            return input

        @self.worker.kind("counts")
        async def counts(ctx: Context, input: int) -> int:
            for i in range(input):
                ctx.log(f"{i}")
                await asyncio.sleep(0.005)
            return input

        @self.worker.kind("fails-once")
        async def fails_once(ctx: Context, input: Any) -> int:
            if ctx.attempt == 1:
                raise JobFailed("no", "not the first time")
            return ctx.attempt

    async def test_a_job_is_submitted_seen_listed_and_deleted(self) -> None:
        async with working(self.worker, self.client):
            jobs = [await self.client.submit("echo", {"n": n}, {"retention": 3600, "max_attempts": 2}) for n in range(3)]
            ended = [await self.client.wait(job.job_id) for job in jobs]
        self.assertEqual([job.input for job in jobs], [{"n": 0}, {"n": 1}, {"n": 2}])
        self.assertEqual([job.outcome for job in ended], [types.Completed({"n": n}) for n in range(3)])
        self.assertEqual((ended[0].options["retention"], ended[0].options["max_attempts"]), (3600.0, 2))
        self.assertTrue(ended[0].state.is_terminal)
        first = await self.client.list(page_size=2, states=[JobState.COMPLETED], kind="echo")
        second = await self.client.list(page_size=2, page=first.next_page)
        self.assertEqual([job.job_id for job in first.jobs + second.jobs], [job.job_id for job in reversed(jobs)])
        self.assertEqual((await self.client.list(states=["FAILED"])).jobs, [])
        await self.client.delete(jobs[0].job_id)
        with self.assertRaises(NotFound):
            await self.client.get(jobs[0].job_id)

    async def test_errors_are_typed(self) -> None:
        async with working(self.worker, self.client):
            done = await self.client.wait((await self.client.submit("echo", 1, idempotency_key="one")).job_id)
            again = await self.client.submit("echo", 1, idempotency_key="one")
            self.assertEqual(again.job_id, done.job_id)
            for call, error in (
                (self.client.submit("echo", 2, idempotency_key="one"), Conflict),
                (self.client.submit("No Kind"), InvalidRequest),
                (self.client.submit("echo", options={"max_attempts": 1000}), InvalidRequest),
                (self.client.submit("echo", options={"max_tries": 1}), InvalidRequest),
                (self.client.get(MISSING), NotFound),
                (self.client.get("no-uuid"), InvalidRequest),
                (self.client.cancel(done.job_id), WrongState),
                (self.client.retry(done.job_id), WrongState),
                (self.client.delete(MISSING), NotFound),
            ):
                with self.subTest(error.__name__), self.assertRaises(error) as caught:
                    await call
                self.assertTrue(str(caught.exception))
            with self.assertRaises(NotFound):
                async for _ in self.client.watch(MISSING):
                    pass
            with self.assertRaises(InvalidRequest):
                async for _ in self.client.watch(done.job_id, "$"):
                    pass

    async def test_j34_a_retry_keeps_the_log_and_its_numbers(self) -> None:
        async with working(self.worker, self.client):
            job = await self.client.submit("fails-once")
            before = await log_of(self.client, job.job_id)
            self.assertTrue(before[-1].is_terminal)
            await self.client.retry(job.job_id)
            after = await log_of(self.client, job.job_id)
        self.assertEqual(after[: len(before)], before)
        self.assertEqual(after[-1].what, types.Completed(2))

    async def test_j15_every_cursor_resumes_exactly_behind_itself(self) -> None:
        async with working(self.worker, self.client):
            job = await self.client.submit("counts", 3)
            events = await log_of(self.client, job.job_id)
        for at, event in enumerate(events, 1):
            rest = [event async for event in self.client.watch(job.job_id, event.cursor)]
            self.assertEqual(rest, events[at:])
        # Of another log, or from beyond the head: it starts over and says so.
        for foreign in ("1-other0", f"{len(events) + 1}-{events[0].cursor.partition('-')[2]}"):
            [gap, *rest] = [event async for event in self.client.watch(job.job_id, foreign)]
            assert isinstance(gap.what, Gap), gap
            self.assertEqual((gap.what.reason, gap.what.snapshot.state), ("reset", JobState.COMPLETED))
            self.assertEqual(rest, events)

    async def test_e20_a_watch_goes_through_cuts_and_shows_each_event_once(self) -> None:
        proxy = Proxy(self.engine.port)
        await proxy.start()
        self.addAsyncCleanup(proxy.end)
        chance = random.Random(7)
        async with working(self.worker, self.client), Client(proxy.address) as far:
            job = await self.client.submit("counts", 300)
            events = []
            async for event in far.watch(job.job_id):
                events.append(event)
                if len(events) in (20, 120, 220):
                    proxy.cut(refuse=True)
                    asyncio.get_running_loop().call_later(chance.random(), proxy.heal)
            expected = await log_of(self.client, job.job_id)
        self.assertEqual(events, expected)
        self.assertGreaterEqual(proxy.accepted, 3)

    async def test_a_watch_that_is_left_ends_its_stream(self) -> None:
        async with working(self.worker, self.client):
            job = await self.client.submit("counts", 100)
            async for _ in self.client.watch(job.job_id):
                break
            self.assertEqual((await asyncio.wait_for(self.client.wait(job.job_id), DEADLINE)).state, JobState.COMPLETED)

    async def test_another_engine_answers_when_one_is_away(self) -> None:
        nobody = f"http://127.0.0.1:{free_port()}"
        async with working(self.worker, self.client):
            for _ in range(8):
                async with Client([nobody, self.engine.address], timeout=10) as client:
                    job = await client.submit("echo", 1)
                    self.assertEqual([event.seq async for event in client.watch(job.job_id)][-1:], [job.last_seq + 2])

    async def test_nobody_there_is_an_error_in_time(self) -> None:
        async with Client(f"http://127.0.0.1:{free_port()}", timeout=0.7) as client:
            for call in (client.get(MISSING), client.delete(MISSING)):
                with self.assertRaises(Unavailable):
                    await asyncio.wait_for(call, DEADLINE)
            with self.assertRaises(CallFailed) as caught:
                async for _ in client.watch(MISSING, patience=0.3):
                    pass
        self.assertEqual(caught.exception.code, grpc.StatusCode.UNAVAILABLE)


if __name__ == "__main__":
    unittest.main()
