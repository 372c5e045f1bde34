"""Losing a lease: by message, in an answer, to the worker's own next attempt. The old run is never heard again."""

from ..contract import LEASE_LOST
from ..play import Play, Violation, b64
from . import case
from .d_cancel import BEGUN, HALF, begun


@case
async def j1_a_lost_lease_stops_its_job_without_a_word(play: Play):
    """LeaseLost stops the handler; nothing more is sent under its token, not even an end; the slot is free."""
    _, stream = await play.connected(capacity=1)
    lease = await begun(play, stream, {"sleep": 60_000})
    await stream.lost(lease)
    await play.silenced(lease, stream, "its lease is lost")


@case
async def j1_an_answer_says_that_the_lease_is_lost(play: Play):
    """LEASE_LOST in the answer to a checkpoint: the call does not return as if it were saved, the job stops without a word."""
    _, stream = await play.connected(capacity=1)
    lease = play.job("fenced", HALF, {"print": "saved"}, BEGUN, {"sleep": 60_000})
    await stream.assign(lease)
    await lease.answer(await lease.report("checkpoint"), LEASE_LOST)
    await play.silenced(lease, stream, "its lease is lost")
    if play.has_printed(lease, "print", text="saved"):
        raise Violation("a checkpoint that was answered LEASE_LOST was taken for saved")


@case
async def j1_a_late_answer_to_a_log_line_stops_the_job_too(play: Play):
    """LEASE_LOST in the answer to a report for which nobody waits."""
    _, stream = await play.connected(capacity=1)
    lease = play.job("fenced", BEGUN, {"sleep": 60_000})
    await stream.assign(lease)
    await lease.answer(await lease.report("log"), LEASE_LOST)
    await play.silenced(lease, stream, "its lease is lost")


@case
async def j1_a_handler_that_goes_on_after_its_lease_is_lost_is_not_heard(play: Play):
    """A handler that ignores the loss may go on, but its reports go nowhere, its waiting calls end, and its slot is free at once."""
    _, stream = await play.connected(capacity=1)
    lease = await begun(play, stream, {"ignore_stop": 1500}, BEGUN, HALF, {"print": "saved"}, {"complete": "late"})
    await stream.lost(lease)
    await play.runs_another(stream, "the lease of the only running job is lost")
    lease.silence("its lease is lost")
    await play.printed(lease, "end")
    await play.runs_another(stream, "the stream still works")
    if play.has_printed(lease, "print", text="saved"):
        raise Violation("a checkpoint call returned as if it were saved although the lease is lost")


@case
async def j1_a_loss_for_another_token_is_ignored(play: Play):
    """LeaseLost for a lease that is not held (an earlier attempt's) harms nothing."""
    _, stream = await play.connected(capacity=2)
    gate = play.gate()
    lease = await begun(play, stream, {"await_file": str(gate)}, {"complete": "unharmed"})
    earlier = play.job(lease.job_id, attempt=7)
    await stream.lost(earlier)
    await play.runs_another(stream, "the loss before it has been read by then")
    gate.touch()
    _, end = await lease.play_out()
    if end.WhichOneof("body") != "complete":
        raise Violation(f"the loss of another lease ended the job with a {end.WhichOneof('body')}")


@case
async def j21_a_new_attempt_replaces_the_old_run_at_once(play: Play):
    """The same job assigned with another token: the old run is silent, the new one starts at number 1 with its checkpoint."""
    _, stream = await play.connected(capacity=1)
    old = await begun(play, stream, {"sleep": 60_000})
    new = play.job(old.job_id, {"resumed": True}, {"complete": "new"}, attempt=2, checkpoint=("half", b"half"))
    await stream.assign(new)
    report = await new.store("custom")
    if b64(b"half") not in report.custom.json:
        raise Violation(f"the new attempt resumed from {report.custom.json}")
    await new.play_out()
    await play.silenced(old, stream, "the job was assigned anew")


@case
async def j21_a_new_attempt_starts_while_the_old_run_is_still_stopping(play: Play):
    """The old run was cancelled and takes its time; the same job comes with another token: the new run is not mixed with it."""
    _, stream = await play.connected(capacity=1)
    old = await begun(play, stream, {"ignore_stop": 1500}, BEGUN, HALF, {"complete": "old"})
    await stream.cancel(old, 20)
    gate = play.gate()
    new = play.job(old.job_id, BEGUN, {"await_file": str(gate)}, HALF, {"complete": "new"}, attempt=2)
    await stream.assign(new)
    await new.store("log")
    old.silence("the job was assigned anew")
    await play.printed(old, "end")
    gate.touch()
    _, end = await new.play_out()
    if end.WhichOneof("body") != "complete" or end.complete.result_json != '"new"':
        raise Violation(f"the new attempt ended with {end}; the order to stop was the old one's")
