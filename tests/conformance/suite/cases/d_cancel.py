"""Calling a job off: told, obeyed, ignored, raced, and meant for somebody else."""

from ..contract import CANCELLED
from ..lease import text
from ..play import Play, Violation, b64
from . import case

BEGUN = {"log": {"text": "begun"}}
HALF = {"checkpoint": {"name": "half", "base64": b64(b"half")}}


async def begun(play: Play, stream, *steps, name="job"):
    lease = play.job(name, BEGUN, *steps)
    await stream.assign(lease)
    await lease.store("log")
    return lease


async def stopped(lease, patience=None):
    """Stores what still comes, up to the end, which must be `stopped`."""
    _, end = await lease.play_out("`stopped`", patience)
    if end.WhichOneof("body") != "stopped":
        raise Violation(f"{lease.name()}: a cancelled job ends with `stopped`, not with {text(end)}")


@case
async def j10_a_cancelled_job_stops(play: Play):
    """A cancellation reaches the handler, the job ends with `stopped`, and its slot is free."""
    _, stream = await play.connected(capacity=1)
    lease = await begun(play, stream, {"wait_stop": True})
    await stream.cancel(lease, 20)
    await play.printed(lease, "stopping", patience=10)
    await stopped(lease, 10)
    await play.printed(lease, "end", patience=10)
    await play.runs_another(stream)


@case
async def j10_a_cancelled_job_reports_stopped_whatever_it_returns(play: Play):
    """A handler that completes although it was told to stop: the job ends with `stopped` all the same."""
    _, stream = await play.connected(capacity=1)
    lease = await begun(play, stream, {"ignore_stop": 500}, {"complete": "finished all the same"})
    await stream.cancel(lease, 20)
    await stopped(lease, 10)
    await play.runs_another(stream)


@case
async def j10_a_cancelled_job_may_fail_while_it_stops(play: Play):
    """A handler that throws because it was told to stop: the job ends with `stopped`."""
    _, stream = await play.connected(capacity=1)
    lease = await begun(play, stream, {"ignore_stop": 300}, {"throw": "while cleaning up"})
    await stream.cancel(lease, 20)
    await stopped(lease, 10)


@case
async def j12_a_cancellation_comes_as_the_answer_to_a_report(play: Play):
    """CANCELLED in the answer to a log line is an order to stop like any other."""
    _, stream = await play.connected(capacity=1)
    lease = play.job("told", BEGUN, {"wait_stop": True})
    await stream.assign(lease)
    await lease.answer(await lease.report("log"), CANCELLED, deadline=20)
    await play.printed(lease, "stopping", patience=10)
    await stopped(lease, 10)
    await play.runs_another(stream)


@case
async def j12_a_cancellation_comes_as_the_answer_to_a_checkpoint(play: Play):
    """CANCELLED with seq 0 in the answer to a checkpoint: it was not stored, and the waiting call says so by ending."""
    _, stream = await play.connected(capacity=1)
    lease = play.job("told", HALF, {"print": "saved"}, {"wait_stop": True})
    await stream.assign(lease)
    await lease.answer(await lease.report("checkpoint"), CANCELLED, seq=0, deadline=20)
    await stopped(lease, 10)
    if play.has_printed(lease, "print", text="saved"):
        raise Violation("a checkpoint that was not stored (CANCELLED, seq 0) was taken for saved")
    await play.runs_another(stream)


@case
async def j11_a_job_that_ignores_its_cancellation_is_cut_off(play: Play):
    """At the deadline the job ends with `stopped`, its slot is free, and nothing more is said of it, whatever its handler does."""
    _, stream = await play.connected(capacity=1)
    lease = await begun(play, stream, {"ignore_stop": 6000}, BEGUN, HALF, {"print": "late"}, {"complete": "late"})
    await stream.cancel(lease, 0.5)
    # The deadline is 2 s after the order, because a shorter one may be a skewed clock.
    await stopped(lease, 5)
    await play.runs_another(stream, "the slot of a job that ignored its cancellation is free again")
    # The handler wakes up, or was aborted: either way no word of it arrives.
    lease.silence("the job was cut off")
    await play.printed(lease, "end")
    await play.runs_another(stream, "the stream still works")


@case
async def j6_a_skewed_clock_leaves_time_to_stop(play: Play):
    """A deadline that seems to have passed by five minutes (another clock) leaves the handler 2 s to clean up."""
    _, stream = await play.connected(capacity=1)
    lease = await begun(play, stream, {"ignore_stop": 500}, {"print": "cleaned up"}, {"complete": 1})
    await stream.cancel(lease, -300)
    await stopped(lease, 10)
    if not play.has_printed(lease, "print", text="cleaned up"):
        raise Violation("the handler was cut off at once because the deadline is in the past by the worker's clock")


@case
async def j6_a_clock_ahead_does_not_prolong_a_cancellation_for_ever(play: Play):
    """An obedient handler stops at once, however far away the deadline seems."""
    _, stream = await play.connected(capacity=1)
    lease = await begun(play, stream, {"sleep": 60_000})
    await stream.cancel(lease, 300)
    await stopped(lease, 10)


@case
async def j10_a_cancellation_right_behind_the_assignment(play: Play):
    """An order that comes with the assignment itself: the job ends once, with `stopped`."""
    _, stream = await play.connected(capacity=1)
    lease = play.job("raced", {"wait_stop": True})
    await stream.assign(lease)
    await stream.cancel(lease, 20)
    await stopped(lease, 10)
    await play.runs_another(stream)


@case
async def j10_a_second_cancellation_changes_nothing(play: Play):
    """The same order twice, and once more in an answer: one `stopped`."""
    _, stream = await play.connected(capacity=1)
    lease = await begun(play, stream, {"ignore_stop": 300}, BEGUN, {"wait_stop": True})
    await stream.cancel(lease, 20)
    await stream.cancel(lease, 20)
    await stopped(lease, 10)
    await stream.cancel(lease, 20)
    await play.runs_another(stream)


@case
async def j1_a_cancellation_for_another_token_is_ignored(play: Play):
    """An order that carries another lease's token stops nothing."""
    _, stream = await play.connected(capacity=2)
    gate = play.gate()
    lease = await begun(play, stream, {"await_file": str(gate)}, {"complete": "unharmed"})
    await stream.cancel(lease, 20, token="0-another")
    await play.runs_another(stream, "the order before it has been read by then")
    gate.touch()
    _, end = await lease.play_out()
    if end.WhichOneof("body") != "complete":
        raise Violation(f"a cancellation of another lease ended the job with {text(end)}")
