"""Python's grpcio as a caller of JobService: nothing of ours but the .proto files."""

import importlib
import json
import pathlib
import sys
import tempfile
import unittest

import grpc
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from grpc_tools import protoc

from server import ROOT, Server

DEADLINE = 60  # seconds; far beyond what any call here needs
MISSING = "01890a5d-ac96-774b-bcce-b302099a8057"


def generate_stubs(target: str):
    """Generates the Python stubs as a user would, and imports them."""
    protos = sorted(str(p) for p in (ROOT / "proto").glob("tidegate/v1/*.proto"))
    import grpc_tools

    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", f"--python_out={target}", f"--grpc_python_out={target}"]
    if protoc.main(arguments + protos) != 0:
        raise AssertionError("protoc refuses the contract")
    sys.path.insert(0, target)
    names = ("job_pb2", "job_service_pb2", "job_service_pb2_grpc")
    return (importlib.import_module(f"tidegate.v1.{name}") for name in names)


class JobServiceFromPython(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stubs = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="tidegate-stubs-"))
        cls.job, cls.pb, grpc_module = generate_stubs(cls.stubs)
        cls.server = cls.enterClassContext(Server())
        cls.channel = cls.enterClassContext(grpc.insecure_channel(cls.server.grpc))
        cls.jobs = grpc_module.JobServiceStub(cls.channel)

    def submit(self, **demo):
        request = self.pb.SubmitJobRequest(kind="demo", input_json=json.dumps(demo))
        return self.jobs.SubmitJob(request, timeout=DEADLINE).job

    def watch(self, job_id, cursor=""):
        """The first message, the gaps, and the events up to the clean end of the stream."""
        messages = list(self.jobs.WatchJob(self.pb.WatchJobRequest(job_id=job_id, cursor=cursor), timeout=DEADLINE))
        self.assertEqual(messages[0].WhichOneof("message"), "opened")
        gaps = [m.gap for m in messages if m.WhichOneof("message") == "gap"]
        events = [m.event for m in messages if m.WhichOneof("message") == "event"]
        return messages[0].opened, gaps, events

    def refusal(self, call, request):
        with self.assertRaises(grpc.RpcError) as caught:
            answer = call(request, timeout=DEADLINE)
            if hasattr(answer, "__iter__"):
                list(answer)
        return caught.exception

    def test_reflection_v1alpha_describes_the_services(self):
        database = ProtoReflectionDescriptorDatabase(self.channel)
        services = set(database.get_services())
        self.assertLessEqual({"tidegate.v1.JobService", "tidegate.v1.WorkerService", "grpc.health.v1.Health"}, services)
        file = database.FindFileContainingSymbol("tidegate.v1.JobService")
        methods = {m.name: m for s in file.service for m in s.method}
        self.assertTrue(methods["WatchJob"].server_streaming)

    def test_a_job_is_watched_to_its_end(self):
        job = self.submit(steps=3, seconds=0.6)
        opened, gaps, events = self.watch(job.job_id)
        self.assertEqual(opened.outcome, self.pb.CURSOR_OUTCOME_FRESH)
        self.assertEqual([e.seq for e in events], list(range(1, len(events) + 1)))
        self.assertFalse(gaps)
        self.assertEqual(events[-1].WhichOneof("kind"), "complete")
        json.loads(events[-1].complete.result_json)
        final = self.jobs.GetJob(self.pb.GetJobRequest(job_id=job.job_id), timeout=DEADLINE).job
        self.assertEqual((final.state, final.last_seq), (self.job.JOB_STATE_COMPLETED, events[-1].seq))

    def test_every_cursor_resumes_exactly_behind_itself(self):
        job = self.submit(steps=2, seconds=0.2)
        opened, _, events = self.watch(job.job_id)
        epoch = opened.job.epoch
        for k in range(1, len(events) + 1):
            opened, gaps, rest = self.watch(job.job_id, f"{k}-{epoch}")
            self.assertEqual(opened.outcome, self.pb.CURSOR_OUTCOME_EXACT)
            self.assertEqual([e.seq for e in rest], [e.seq for e in events[k:]])
            self.assertFalse(gaps)
        # e24, e27: a cursor of another log, or from beyond the head, starts over and says so.
        for foreign in ("1-other0", f"{len(events) + 1}-{epoch}"):
            opened, gaps, rest = self.watch(job.job_id, foreign)
            self.assertEqual(opened.outcome, self.pb.CURSOR_OUTCOME_RESET)
            self.assertEqual([g.reason for g in gaps], ["reset"])
            self.assertEqual([e.seq for e in rest], [e.seq for e in events])

    def test_a_running_job_is_cancelled_within_its_deadline(self):
        job = self.submit(steps=100, seconds=100)
        stream = self.jobs.WatchJob(self.pb.WatchJobRequest(job_id=job.job_id), timeout=DEADLINE)
        kinds = []
        for message in stream:
            kinds.append(message.event.WhichOneof("kind"))
            if kinds[-1] == "progress" and kinds.count("progress") == 1:
                self.jobs.CancelJob(self.pb.CancelJobRequest(job_id=job.job_id, reason="a test"), timeout=DEADLINE)
        self.assertEqual(kinds[-1], "cancelled")
        self.assertEqual(message.event.cancelled.reason, "a test")
        again = self.refusal(self.jobs.RetryJob, self.pb.RetryJobRequest(job_id=MISSING))
        self.assertEqual(again.code(), grpc.StatusCode.NOT_FOUND)

    def test_refusals_carry_codes_and_rich_details(self):
        refusal = self.refusal(self.jobs.SubmitJob, self.pb.SubmitJobRequest(kind="No Kind", input_json="{"))
        self.assertEqual(refusal.code(), grpc.StatusCode.INVALID_ARGUMENT)
        fields = set()
        for detail in rpc_status.from_call(refusal).details:
            bad_request = error_details_pb2.BadRequest()
            if detail.Unpack(bad_request):
                fields |= {violation.field for violation in bad_request.field_violations}
        # The input is named as the HTTP interface names it, `input`, or as the message does.
        self.assertEqual({field.removesuffix("_json") for field in fields}, {"kind", "input"})

        for call, request, code in (
            (self.jobs.GetJob, self.pb.GetJobRequest(job_id=MISSING), grpc.StatusCode.NOT_FOUND),
            (self.jobs.GetJob, self.pb.GetJobRequest(job_id="no-uuid"), grpc.StatusCode.INVALID_ARGUMENT),
            (self.jobs.WatchJob, self.pb.WatchJobRequest(job_id=MISSING), grpc.StatusCode.NOT_FOUND),
            (self.jobs.WatchJob, self.pb.WatchJobRequest(job_id=MISSING, cursor="$"), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with self.subTest(request=str(request)):
                self.assertEqual(self.refusal(call, request).code(), code)

    def test_idempotency_keys_yield_one_job_and_refuse_another_request(self):
        request = self.pb.SubmitJobRequest(kind="demo", input_json='{"seconds": 0}', idempotency_key="python-1")
        first = self.jobs.SubmitJob(request, timeout=DEADLINE)
        second = self.jobs.SubmitJob(request, timeout=DEADLINE)
        self.assertEqual((first.created, second.created), (True, False))
        self.assertEqual(first.job.job_id, second.job.job_id)
        request.input_json = '{"seconds": 1}'
        self.assertEqual(self.refusal(self.jobs.SubmitJob, request).code(), grpc.StatusCode.ALREADY_EXISTS)


if __name__ == "__main__":
    unittest.main(verbosity=2)
