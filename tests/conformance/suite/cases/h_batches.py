"""Reports and answers that share a message: allowed by the Welcome and by Hello, and meaning what they would mean alone.

That no message holds more reports than the Welcome allows is judged on every stream, see engine.py.
"""

import grpc

from ..contract import CANCELLED, LEASE_LOST, OK, REJECTED
from ..lease import text
from ..play import Play, Violation, b64
from . import case

HALF = {"checkpoint": {"name": "half", "base64": b64(b"half")}}
GO = {"complete": "whole"}


def lines(n: int) -> list[dict]:
    return [{"log": {"text": str(i)}} for i in range(n)]


async def told(play: Play, stream, jobs: int, each: int):
    """Plays jobs that say `each` lines at once; all must come, in order."""
    leases = [play.job(f"job-{i}", *lines(each), GO) for i in range(jobs)]
    for lease in leases:
        await stream.assign(lease)
    for lease in leases:
        before, end = await lease.play_out()
        if [report.log.text for report in before] != [str(i) for i in range(each)] or end.WhichOneof("body") != "complete":
            raise Violation(f"{lease.name()} reported {len(before)} lines of {each}, and ended with {text(end)}")


@case
async def an_engine_that_knows_no_batches_is_sent_none(play: Play):
    """A Welcome without max_batched_reports, as older engines say it: every report is a message of its own."""
    _, stream = await play.connected(batch=0)
    await told(play, stream, 3, 100)


@case
async def a_message_holds_no_more_reports_than_the_welcome_allows(play: Play):
    """max_batched_reports is kept, however small it is and however much there is to say."""
    _, stream = await play.connected(batch=3)
    await told(play, stream, 3, 100)


@case
async def answers_that_share_a_message_are_answers(play: Play):
    """Each answer in ReportAcks counts by itself: stored, rejected in the middle, stored; of two jobs."""
    _, stream = await play.connected()
    one = play.job("one", {"log": {"text": "1"}}, {"custom": {"name": "chart", "value": 1}}, {"print": "went on"}, GO)
    two = play.job("two", HALF, {"print": "saved"}, GO)
    await stream.assign(one)
    await stream.assign(two)
    log, custom, checkpoint = await one.report("log"), await one.report("custom"), await two.report("checkpoint")
    await stream.acks(
        stream.ack_of(log, OK, 7),
        stream.ack_of(custom, REJECTED, message="not this chart"),
        # For a lease that is not the worker's: it says nothing about the others.
        stream.ack_of(checkpoint, LEASE_LOST, token="1-another"),
        stream.ack_of(log, OK, 7),
        stream.ack_of(checkpoint, OK, 8),
    )
    await play.printed(one, "rejected")
    await play.printed(one, "print", text="went on")
    await play.printed(two, "print", text="saved")
    if play.has_printed(two, "rejected"):
        raise Violation("a checkpoint that was stored was rejected because another report in the same message was")
    for lease in (one, two):
        _, end = await lease.play_out()
        if end.WhichOneof("body") != "complete":
            raise Violation(f"{lease.name()} ended with {text(end)}")
    await play.runs_another(stream)


@case
async def j1_a_lost_lease_among_answers_stops_its_job_alone(play: Play):
    """LEASE_LOST and CANCELLED in the middle of ReportAcks concern the jobs they name, and nobody behind them."""
    _, stream = await play.connected()
    lost, called_off, kept = (play.job(name, HALF, {"wait_stop": True}) for name in ("lost", "called-off", "kept"))
    reports = []
    for lease in (lost, called_off, kept):
        await stream.assign(lease)
        reports.append(await lease.report("checkpoint"))
    lost.silence("an answer said that its lease is lost")
    await stream.acks(
        stream.ack_of(reports[0], LEASE_LOST),
        stream.ack_of(reports[1], CANCELLED, 7, deadline=20),
        stream.ack_of(reports[2], OK, 8),
    )
    await play.printed(lost, "end", patience=10)
    await called_off.store("stopped")
    if play.has_printed(kept, "end"):
        raise Violation("the job whose report was stored was stopped as well")
    await stream.cancel(kept, 20)
    await kept.store("stopped")
    await play.runs_another(stream)


@case
async def j5_what_was_sent_together_is_sent_again_alone_to_an_older_engine(play: Play):
    """After a break, reports that left together go to an engine without batches one by one, with their numbers and in order."""
    engine, stream = await play.connected()
    go = play.gate()
    lease = play.job("survivor", *lines(20), {"print": "said"}, {"await_file": str(go)}, GO)
    await stream.assign(lease)
    for _ in range(20):
        await lease.report("log")
    await play.printed(lease, "print", text="said")
    stream.end(grpc.StatusCode.UNAVAILABLE)
    stream = await engine.accept()
    stream.expect_leases(lease)
    await stream.welcome(resumed=[(lease, 5)], batch=0)
    got = [(await lease.store("log")).log.text for _ in range(15)]
    if got != [str(i) for i in range(5, 20)]:
        raise Violation(f"after the Welcome with last_report 5 the lines are {got}; expected 5 to 19")
    go.touch()
    await lease.play_out()
