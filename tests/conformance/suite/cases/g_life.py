"""Signs of life, drain, and leaving: what keeps a worker's leases, and how it gives them up."""

import time

from ..lease import text
from ..play import Play, Violation
from . import case
from .d_cancel import BEGUN, HALF, begun
from .f_reconnect import first_of


def widest_gap(times: list[float]) -> float:
    return max(b - a for a, b in zip(times, times[1:]))


@case
async def j35_the_ping_interval_is_kept(play: Play):
    """An idle worker sends something at least every ping_interval of the Welcome, and not much more often."""
    _, stream = await play.connected(ping=0.3)
    begin = time.monotonic()
    stream.heard.clear()
    await play.until(lambda: stream.pings >= 10, "ten pings", 10)
    took, gap = time.monotonic() - begin, widest_gap(stream.heard)
    if took > 10 * 0.3 * 1.5 + 1:
        raise Violation(f"ten pings took {took:.1f} s; the interval is 0.3 s")
    if took < 1:
        raise Violation(f"ten pings came within {took:.2f} s; the interval is 0.3 s")
    if gap > 1.5:
        raise Violation(f"nothing was heard for {gap:.1f} s; the interval is 0.3 s")


@case
async def j7_a_computing_handler_does_not_silence_the_worker(play: Play):
    """While a handler computes for 3 s, in the way the library recommends, pings go on."""
    _, stream = await play.connected(ping=0.5)
    lease = await begun(play, stream, {"busy": 3000}, {"print": "computed"})
    stream.heard.clear()
    await play.printed(lease, "print", text="computed")
    if len(stream.heard) < 3 or widest_gap(stream.heard) > 2:
        raise Violation(f"{len(stream.heard)} signs of life came during 3 s of work; the interval is 0.5 s")
    await lease.play_out()


@case
async def j36_a_silent_engine_is_left(play: Play):
    """No pong and nothing else for twice the ping_interval: the worker leaves, and comes back with its lease."""
    engine, stream = await play.connected(ping=0.5)
    lease = await begun(play, stream, {"sleep": 60_000})
    stream.pong = False
    silent = time.monotonic()
    await play.wait(stream.closed.wait(), "the worker leaves an engine that is silent (ping interval 0.5 s)", 6)
    if time.monotonic() - silent < 0.4:
        raise Violation("the worker left before twice the ping interval had passed")
    stream = await engine.accept()
    stream.expect_leases(lease)
    await stream.welcome(resumed=[(lease, 1)])
    await play.runs_another(stream, "the worker is back")


@case
async def j36_an_idle_worker_leaves_a_draining_engine_at_once(play: Play):
    """Drain without jobs in hand: the worker connects to the other engine at once."""
    one, two = await play.engine(), await play.engine()
    await play.start(one, two)
    stream, _, other = await first_of(play, one, two)
    await stream.welcome()
    await play.runs_another(stream, "the worker is to be idle afterwards")
    await stream.drain(60)
    moved = await other.accept(10)
    moved.expect_leases()
    await moved.welcome()
    await play.runs_another(moved, "the worker has moved")
    await play.wait(stream.closed.wait(), "the draining engine's stream is closed", 5)


@case
async def j36_a_draining_engine_is_left_when_the_jobs_are_done(play: Play):
    """Drain with a job in hand: the job ends on its stream, then the worker connects elsewhere."""
    one, two = await play.engine(), await play.engine()
    await play.start(one, two)
    stream, _, other = await first_of(play, one, two)
    await stream.welcome(ping=1.0)
    gate = play.gate()
    lease = await begun(play, stream, {"await_file": str(gate)}, HALF, {"complete": 1})
    await stream.drain(60)
    await stream.quiet()
    if not other.opened.empty():
        raise Violation("the worker left at once although a job is in hand and the deadline is far")
    gate.touch()
    await lease.play_out()
    moved = await other.accept(10)
    moved.expect_leases()


@case
async def j36_a_draining_engine_is_left_at_the_deadline_with_the_job_in_hand(play: Play):
    """Drain with a long job: at the deadline the worker connects elsewhere, names the lease, and goes on."""
    one, two = await play.engine(), await play.engine()
    await play.start(one, two)
    stream, _, other = await first_of(play, one, two)
    await stream.welcome()
    gate = play.gate()
    lease = await begun(play, stream, {"await_file": str(gate)}, HALF, {"complete": "moved"})
    await stream.drain(2)
    moved = await other.accept(10)
    moved.expect_leases(lease)
    await moved.welcome(resumed=[(lease, 1)])
    gate.touch()
    _, end = await lease.play_out()
    if end.WhichOneof("body") != "complete":
        raise Violation(f"the job ended with {text(end)}")
    await play.wait(stream.closed.wait(), "the draining engine's stream is closed", 5)


async def exits(play: Play, patience: float) -> None:
    await play.wait(play.worker.exited.wait(), "the worker exits after SIGTERM", patience)
    if play.worker.code != 0:
        raise Violation(f"the worker exited with code {play.worker.code}; a shutdown in order is 0")


@case
async def an_idle_worker_exits_at_once(play: Play):
    """SIGTERM without jobs: exit code 0 at once, the stream is closed."""
    _, stream = await play.connected(grace=30)
    await play.runs_another(stream, "the worker is to be idle afterwards")
    play.worker.terminate()
    await exits(play, 5)
    await play.wait(stream.closed.wait(), "the stream is closed", 5)


@case
async def an_idle_worker_exits_although_no_engine_is_there(play: Play):
    """SIGTERM while the engine is away: exit code 0 all the same."""
    from ..network import Shut

    shut = await Shut().start()
    play.closers.append(shut.close)
    await play.start(shut, grace=30)
    await play.until(lambda: len(shut.connects) >= 2, "two tries to connect")
    play.worker.terminate()
    await exits(play, 5)


@case
async def a_leaving_worker_finishes_its_jobs_within_the_grace_time(play: Play):
    """SIGTERM with a job in hand: it may finish, nothing new is begun, the end is answered before the exit, code 0."""
    _, stream = await play.connected(capacity=1, grace=30, ping=1.0)
    gate = play.gate()
    lease = await begun(play, stream, {"await_file": str(gate)}, HALF, {"complete": "finished"})
    play.worker.terminate()
    await stream.quiet()
    gate.touch()
    await lease.store("checkpoint")
    end = await lease.report("complete")
    # Not answered yet: the worker waits, or the end would be lost with it.
    until = stream.pings + 2
    await play.until(lambda: stream.pings >= until or play.worker.exited.is_set(), "two more pings, or the exit")
    if play.worker.exited.is_set():
        raise Violation("the worker exited before its last report was answered")
    await lease.answer(end)
    await exits(play, 10)


@case
async def a_leaving_worker_gives_back_what_it_cannot_finish(play: Play):
    """SIGTERM with a long job and a short grace time: the handler is told, the job is given back (`released`), code 0."""
    _, stream = await play.connected(capacity=1, grace=1)
    lease = await begun(play, stream, {"wait_stop": True})
    play.worker.terminate()
    _, end = await lease.play_out("`released`", 15)
    if end.WhichOneof("body") != "released":
        raise Violation(f"the job ended with {text(end)}: a job that a leaving worker cannot finish is `released`, which counts as no failure")
    await exits(play, 15)
    if not play.has_printed(lease, "stopping"):
        raise Violation("the handler was not told to stop")


@case
async def a_leaving_worker_gives_back_a_job_that_does_not_listen(play: Play):
    """SIGTERM with a handler that ignores the order: given back all the same, code 0, within the grace time and 15 s."""
    _, stream = await play.connected(capacity=1, grace=0)
    lease = await begun(play, stream, {"ignore_stop": 60_000}, BEGUN)
    play.worker.terminate()
    _, end = await lease.play_out("`released`", 15)
    if end.WhichOneof("body") != "released":
        raise Violation(f"the job ended with {text(end)}; expected `released`")
    await exits(play, 15)


@case
async def an_assignment_to_a_leaving_worker_is_given_back(play: Play):
    """A job that crosses the SIGTERM on its way is not begun, and is given back in the end."""
    _, stream = await play.connected(capacity=2, grace=30, ping=1.0)
    gate = play.gate()
    first = await begun(play, stream, {"await_file": str(gate)}, name="first")
    play.worker.terminate()
    await stream.quiet()
    second = play.job("second", BEGUN, {"complete": 1})
    await stream.assign(second)
    gate.touch()
    await first.play_out()
    await second.store("released")
    if play.has_printed(second, "begin"):
        raise Violation("a job was begun after SIGTERM")
    await exits(play, 10)
