"""The parts that need no engine: generated code, limits, addresses, pauses, options, errors."""

from __future__ import annotations

import datetime
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import grpc

from tests.support import PYTHON
from tidegate import Client, InvalidRequest, JobState, Worker, _engines, _limits, types
from tidegate.context import Context, Stop
from tidegate.v1 import job_pb2, worker_service_pb2


class Generated(unittest.TestCase):
    def test_the_committed_code_is_what_the_contract_generates(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            # In a process of its own: the compiler registers the contract's messages a second time.
            code = f"import pathlib, generate; generate.generate(pathlib.Path({scratch!r}))"
            subprocess.run([sys.executable, "-c", code], check=True, cwd=PYTHON)
            generated = pathlib.Path(scratch) / "tidegate" / "v1"
            committed = PYTHON / "tidegate" / "v1"
            names = {path.name for path in committed.iterdir() if path.is_file()}
            self.assertEqual({path.name for path in generated.iterdir()}, names)
            for name in names:
                self.assertEqual(
                    (committed / name).read_text(), (generated / name).read_text(), f"{name} is stale: python generate.py"
                )


class Contexts(unittest.TestCase):
    def test_a_job_of_a_schedule_knows_for_which_instant_it_is(self) -> None:
        assignment = worker_service_pb2.Assignment(job_id="j")
        job = Context(assignment, Stop(), None)  # type: ignore[arg-type]
        self.assertIsNone(job.scheduled_for)
        assignment.scheduled_for.FromSeconds(1_798_761_600)
        self.assertEqual(job.scheduled_for, datetime.datetime(2027, 1, 1, tzinfo=datetime.timezone.utc))


class Limits(unittest.TestCase):
    def test_cut_keeps_characters_whole(self) -> None:
        self.assertEqual(_limits.cut("kurz", 16), "kurz")
        text = _limits.cut("ä" * 100, 50)
        self.assertLessEqual(len(text.encode()), 50)
        self.assertTrue(text.endswith(_limits.CUT_MARK))
        # Half a surrogate pair cannot be sent at all.
        self.assertEqual(_limits.cut("a\ud800b", 16), "a?b")

    def test_e10_event_names_never_collide_with_eventsource(self) -> None:
        for bad in ("error", "open", "message", "progress", "", "Chart", "a\nb", "a\n", "1a", "gap", "a" * 65):
            self.assertFalse(_limits.is_event_name(bad), bad)
        self.assertTrue(_limits.is_event_name("chart.v2"))

    def test_what_is_no_json_is_refused(self) -> None:
        loop: list[object] = []
        loop.append(loop)
        for bad in (float("nan"), object(), loop, "\ud800", {1j: 1}):
            with self.assertRaisesRegex(ValueError, "^not JSON: "):
                _limits.to_json(bad)
        self.assertEqual(_limits.to_json({"ä": [1, None]}), '{"ä":[1,null]}')


class Addresses(unittest.TestCase):
    def test_engines_come_as_a_list_or_with_commas(self) -> None:
        for engines in ("http://a:1,https://[::1]:2,c:3", ["http://a:1", "https://[::1]:2", "c:3"]):
            found = [(engine.target, engine.secure) for engine in _engines.parse(engines)]
            self.assertEqual(found, [("dns:///a:1", False), ("dns:///[::1]:2", True), ("dns:///c:3", False)])

    def test_all_that_is_wrong_is_said_at_once(self) -> None:
        with self.assertRaisesRegex(ValueError, "'ftp://a'.*'http://'.*'http://a:x'.*'http://a/b'"):
            _engines.parse("ftp://a,http://,http://a:x,http://a/b")
        with self.assertRaises(ValueError):
            _engines.parse([])

    def test_e43_backoff_resets_only_after_a_healthy_time(self) -> None:
        backoff = _engines.Backoff()
        pauses = [backoff.pause(1.0, 0.0) for _ in range(6)]
        self.assertEqual(pauses, sorted(set(pauses)))
        for _ in range(100):
            self.assertLessEqual(backoff.pause(0.0, 0.999), backoff.LONGEST)
        self.assertEqual(backoff.pause(backoff.HEALTHY, 0.0), backoff.FIRST / 2)


class Options(unittest.TestCase):
    def test_every_option_of_the_contract_passes_through(self) -> None:
        for field in job_pb2.JobOptions.DESCRIPTOR.fields:
            if field.message_type is None:
                value: object = "x" if field.type == field.TYPE_STRING else 3
            elif field.message_type.name == "Duration":
                value = 1.5
            elif field.message_type.name == "Timestamp":
                value = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
            else:
                value = {}
            if field.enum_type is not None:
                value = 1
            with self.subTest(field.name):
                message = types.options({field.name: value})
                self.assertTrue(any(found.name == field.name for found, _ in message.ListFields()))

    def test_values_that_do_not_fit_are_named(self) -> None:
        for values, message in (
            ({"delai": 1}, "there is no 'delai'; there are backoff, .*delay"),
            ({"delay": "soon"}, "options.delay: "),
            ({"max_attempts": -1}, "options.max_attempts: "),
            ({"max_attempts": 1.5}, "options.max_attempts: "),
        ):
            with self.assertRaisesRegex(ValueError, message):
                types.options(values)
        self.assertEqual(types.options({"delay": None}), job_pb2.JobOptions())
        self.assertEqual(types.options({"delay": datetime.timedelta(minutes=1)}).delay.seconds, 60)

    def test_e57_states_and_events_of_a_newer_engine_are_no_error(self) -> None:
        message = job_pb2.Job.FromString(job_pb2.Job(job_id="j").SerializeToString() + b"\x28\x63")  # state = 99
        self.assertEqual(types.job(message).state, JobState.UNKNOWN)
        self.assertEqual(types.event(job_pb2.Event(seq=1), "e").what, types.Unknown())


class Descriptions(unittest.IsolatedAsyncioTestCase):
    def test_a_kind_is_checked_when_it_is_offered(self) -> None:
        worker = Worker("http://127.0.0.1:1")

        async def handler(ctx: object, input: object) -> None: ...

        worker.kind("a")(handler)
        for name in ("a", "A", "", "a b", "ä"):
            with self.assertRaises(ValueError):
                worker.kind(name)(handler)
        with self.assertRaises(ValueError):
            worker.kind("b", example=float("nan"))
        with self.assertRaises(ValueError):
            Worker("http://127.0.0.1:1", capacity=0)

    async def test_j37_what_is_too_large_is_refused_before_it_is_sent(self) -> None:
        # Nobody listens there: an error that says the size is not the engine's.
        async with Client("http://127.0.0.1:1", timeout=60) as client:
            for input, message in (
                ("x" * (5 << 20), "input: the input has 5242882 bytes; the engine takes 262144"),
                (1j, "JSON"),
            ):
                with self.assertRaisesRegex(InvalidRequest, message) as caught:
                    await client.submit("demo", input)
                self.assertEqual(caught.exception.code, grpc.StatusCode.INVALID_ARGUMENT)

    def test_the_schema_of_a_kind_is_json(self) -> None:
        worker = Worker("http://127.0.0.1:1")
        worker.kind("a", input_schema={"type": "object"}, example=[1])(lambda ctx, input: None)
        kind = worker._plan.kinds["a"]
        self.assertEqual((json.loads(kind.offer.input_schema_json), kind.offer.example_json), ({"type": "object"}, "[1]"))
        self.assertTrue(kind.threaded, "a plain function runs in a thread")


if __name__ == "__main__":
    unittest.main()
