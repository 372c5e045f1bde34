"""What a worker does with the engine's answers: late, refusing, for somebody else, or of a kind that is not known yet."""

import json

from ..contract import CANCELLED, OK, REJECTED, v1
from ..lease import text
from ..play import Play, Violation, b64
from . import case

HALF = {"checkpoint": {"name": "half", "base64": b64(b"half")}}


@case
async def j3_a_checkpoint_call_waits_for_its_answer(play: Play):
    """A checkpoint call, and a custom one, return when the engine has stored the report, and not before."""
    _, stream = await play.connected(ping=1.0)
    lease = play.job("slow", HALF, {"print": "saved"}, {"custom": {"name": "chart", "value": 1}}, {"print": "shown"}, {"complete": 1})
    await stream.assign(lease)
    for kind, printed in (("checkpoint", "saved"), ("custom", "shown")):
        report = await lease.report(kind)
        await stream.quiet()
        if play.has_printed(lease, "print", text=printed) or not lease.inbox.empty():
            raise Violation(f"the {kind} call returned before its report was answered")
        await lease.answer(report)
        await play.printed(lease, "print", text=printed)
    await lease.play_out()


@case
async def j2_a_job_resumes_from_its_checkpoint(play: Play):
    """The handler gets the last checkpoint's name and bytes, an empty one too, and can tell it from none."""
    _, stream = await play.connected(custom=131_072)
    data = bytes(range(256)) * 256
    for attempt, checkpoint in ((1, None), (2, ("half", data)), (3, ("", b""))):
        lease = play.job(f"resumes-{attempt}", {"resumed": True}, attempt=attempt, checkpoint=checkpoint)
        await stream.assign(lease)
        report = await lease.store("custom")
        wanted = {"name": checkpoint[0], "base64": b64(checkpoint[1])} if checkpoint else None
        got = json.loads(report.custom.json)
        if report.custom.name != "resumed" or got != {"attempt": attempt, "checkpoint": wanted}:
            raise Violation(f"attempt {attempt} resumed from {str(got)[:120]}, the assignment says {str(wanted)[:120]}")
        await lease.play_out()


@case
async def a_rejected_report_is_its_calls_error_alone(play: Play):
    """REJECTED makes the call an error with the engine's message; the job goes on under the next number."""
    _, stream = await play.connected()
    lease = play.job("rejected", HALF, {"custom": {"name": "chart", "value": 1}}, HALF, {"complete": "survived"})
    await stream.assign(lease)
    for kind in ("checkpoint", "custom"):
        await lease.answer(await lease.report(kind), REJECTED, message=f"not this {kind}")
    await lease.store("checkpoint")
    _, end = await lease.play_out()
    if end.WhichOneof("body") != "complete":
        raise Violation(f"the job ended with {text(end)} although its handler goes on after a rejection")
    messages = [line.get("message", "") for line in play.worker.lines if line.get("at") == "rejected"]
    if len(messages) != 2 or "not this checkpoint" not in messages[0] or "not this custom" not in messages[1]:
        raise Violation(f"the calls' errors are {messages}; expected two with the engine's words 'not this …'")


@case
async def a_rejected_result_becomes_a_failure(play: Play):
    """A result that the engine rejects ends the job all the same: failed, result_too_large, under the next number."""
    _, stream = await play.connected()
    lease = play.job("result", {"complete": "too much"})
    await stream.assign(lease)
    await lease.answer(await lease.report("complete"), REJECTED, message="too large")
    end = await lease.store("fail")
    if end.fail.code != "result_too_large" or end.fail.retryable:
        raise Violation(f"expected a final failure with the code 'result_too_large', got {end.fail}")
    await play.runs_another(stream)


@case
async def j1_answers_for_another_token_are_ignored(play: Play):
    """An answer that carries another lease's token answers nothing."""
    _, stream = await play.connected(ping=1.0)
    lease = play.job("mine", HALF, {"print": "saved"})
    await stream.assign(lease)
    report = await lease.report("checkpoint")
    await lease.answer(report, OK, token="1-another")
    await stream.quiet()
    if play.has_printed(lease, "print", text="saved"):
        raise Violation("a checkpoint call took the answer to another lease's report for its own")
    await lease.answer(report)
    await lease.play_out()


@case
async def answers_may_come_out_of_order_and_twice(play: Play):
    """Each answer belongs to the report it names, whatever the order; a second one to the same report means nothing."""
    _, stream = await play.connected()
    lease = play.job("order", {"log": {"text": "one"}}, {"log": {"text": "two"}}, HALF, {"print": "saved"}, {"complete": 1})
    await stream.assign(lease)
    one, two, three = [await lease.report() for _ in range(3)]
    await lease.answer(three)
    await play.printed(lease, "print", text="saved")
    for report in (two, one, one, three):
        await lease.answer(report)
    _, end = await lease.play_out()
    if end.WhichOneof("body") != "complete":
        raise Violation(f"the job ended with {text(end)}")
    await play.runs_another(stream)


@case
async def e57_an_unknown_answer_counts_as_answered(play: Play):
    """A result that this version does not know answers the report, and nothing speaks against it."""
    _, stream = await play.connected()
    lease = play.job("newer", HALF, {"print": "saved"})
    await stream.assign(lease)
    await lease.answer(await lease.report("checkpoint"), 99)
    await play.printed(lease, "print", text="saved", patience=10)
    await lease.play_out()


@case
async def e57_messages_and_fields_of_a_newer_engine_are_ignored(play: Play):
    """Messages that are not known are ignored, known ones with unknown fields understood."""
    _, stream = await play.connected()
    # Field 100 (a message with one field) where the oneof of WorkResponse would have it; and a response without anything.
    await stream.send(b"\xa2\x06\x02\x08\x01")
    await stream.send(b"")
    lease = play.job("newer", HALF)
    # The assignment with a text as field 200 behind what is known, wrapped as WorkResponse.assignment (field 2).
    assignment = lease.assignment.SerializeToString() + b"\xc2\x0c\x05newer"
    if not v1.Assignment.FromString(assignment).job_id:
        raise AssertionError("the suite's own message is broken")
    lease.assigned(stream)
    await stream.send(b"\x12" + _length(len(assignment)) + assignment)
    await lease.play_out()
    if stream.closed.is_set():
        raise Violation("the worker left the stream because of a message that it does not know")


@case
async def j10_a_cancelled_answer_to_the_end_asks_for_stopped(play: Play):
    """CANCELLED to the ending report: with seq 0 it was not stored, and `stopped` follows; with a seq it was, and nothing does."""
    _, stream = await play.connected()
    refused = play.job("refused", {"complete": 1})
    await stream.assign(refused)
    await refused.answer(await refused.report("complete"), CANCELLED, seq=0, deadline=20)
    await refused.store("stopped")
    stored = play.job("stored", {"complete": 1})
    await stream.assign(stored)
    await stored.answer(await stored.report("complete"), CANCELLED, seq=7, deadline=20)
    stored.silence("its end was stored")
    await play.runs_another(stream)


def _length(value: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))
