"""Streams that break, and engines that are away: jobs go on, reports are sent again exactly, nobody is stormed."""

import asyncio
import time

import grpc

from ..engine import cancel_request
from ..network import Proxy, Shut, WebPage
from ..lease import text
from ..play import Play, Violation
from . import case
from .d_cancel import BEGUN, HALF, begun, stopped


def line(text: str) -> dict:
    return {"log": {"text": text}}


def text_of(report) -> str:
    return report.log.text if report.WhichOneof("body") == "log" else report.WhichOneof("body")


async def survives(play: Play, first, stream, second, cut):
    """Plays a break by `cut`: the engine stored two of three reports, the job goes on meanwhile, and returns with its lease."""
    gate, go = play.gate(), play.gate()
    steps = [line("1"), line("2"), line("3"), {"print": "said"}, {"await_file": str(gate)}, line("4"), {"print": "went on"}, HALF]
    lease = play.job("survivor", *steps, {"await_file": str(go)}, {"complete": "whole"})
    await stream.assign(lease)
    one = await lease.report("log")
    await lease.report("log")
    await lease.report("log")
    await lease.answer(one)
    await play.printed(lease, "print", text="said")
    await cut()
    gate.touch()
    await play.printed(lease, "print", text="went on", patience=10)
    stream = await second.accept()
    stream.expect_leases(lease)
    # The second was stored, but its answer was lost with the stream.
    await stream.welcome(resumed=[(lease, 2)])
    got = [text_of(await lease.store()) for _ in range(3)]
    if got != ["3", "4", "checkpoint"]:
        raise Violation(f"after the Welcome with last_report 2 the reports are {got}; expected 3, 4, checkpoint")
    go.touch()
    _, end = await lease.play_out()
    if end.WhichOneof("body") != "complete":
        raise Violation(f"the job ended with {text(end)}")
    await play.runs_another(stream)


@case
async def j5_a_reset_connection_loses_no_report_and_no_job(play: Play):
    """RST: unanswered reports are sent again in order with their numbers, stored ones are not, the job goes on meanwhile."""
    engine = await play.engine()
    proxy = await Proxy(engine).start()
    play.closers.append(proxy.close)
    await play.start(proxy)
    stream = await engine.accept()
    await stream.welcome()

    async def cut():
        proxy.cut()

    await survives(play, engine, stream, engine, cut)


@case
async def j36_a_stream_that_ends_in_order_is_opened_again(play: Play):
    """EOF with status OK: the same."""
    engine, stream = await play.connected()

    async def cut():
        stream.end()

    await survives(play, engine, stream, engine, cut)


@case
async def j36_a_stream_that_ends_with_a_status_is_opened_again(play: Play):
    """UNAVAILABLE: the same."""
    engine, stream = await play.connected()

    async def cut():
        stream.end(grpc.StatusCode.UNAVAILABLE)

    await survives(play, engine, stream, engine, cut)


@case
async def j36_goaway_is_survived(play: Play):
    """GOAWAY, then the end of the stream: the worker goes to the other engine with its lease."""
    first, second = await play.engine(), await play.engine()
    await play.start(first, second)
    stream, first, second = await first_of(play, first, second)
    await stream.welcome()

    async def cut():
        await first.close(0.3)

    await survives(play, first, stream, second, cut)


async def first_of(play: Play, one, two):
    """The first stream, whichever engine the worker chose; that engine, and the other."""
    await play.until(lambda: not one.opened.empty() or not two.opened.empty(), "the worker's Hello at either engine")
    chosen, other = (one, two) if not one.opened.empty() else (two, one)
    return await chosen.accept(), chosen, other


async def broken_with(play: Play, *steps, capacity=1):
    """A job that has begun, on a stream that then broke; the next stream, not yet welcomed."""
    engine, stream = await play.connected(capacity=capacity)
    lease = await begun(play, stream, *steps)
    stream.end(grpc.StatusCode.UNAVAILABLE)
    stream = await engine.accept()
    stream.expect_leases(lease)
    return lease, stream


@case
async def j2_a_lease_that_is_lost_in_the_welcome_stops_its_job(play: Play):
    """Welcome.lost names the lease: the handler is stopped, nothing is sent, the slot is free."""
    lease, stream = await broken_with(play, {"sleep": 60_000})
    await stream.welcome(lost=[lease])
    await play.silenced(lease, stream, "the Welcome says that its lease is lost")


@case
async def j2_a_lease_of_which_the_welcome_says_nothing_is_lost(play: Play):
    """An engine that has forgotten the lease: the same."""
    lease, stream = await broken_with(play, {"sleep": 60_000})
    await stream.welcome()
    await play.silenced(lease, stream, "the Welcome does not know its lease")


@case
async def j12_a_cancellation_waits_in_the_welcome(play: Play):
    """ResumedLease.cancel_requested is an order to stop like any other."""
    lease, stream = await broken_with(play, {"wait_stop": True})
    await stream.welcome(resumed=[(lease, 1)], cancel=cancel_request(20))
    await play.printed(lease, "stopping", patience=10)
    await stopped(lease, 10)
    await play.runs_another(stream)


@case
async def j4_a_stored_end_is_not_sent_again(play: Play):
    """The end was stored and its answer lost: the Welcome says so, the lease is done, the slot is free."""
    engine, stream = await play.connected(capacity=1)
    lease = play.job("ended", BEGUN, {"complete": 1})
    await stream.assign(lease)
    await lease.store("log")
    await lease.report("complete")
    stream.end(grpc.StatusCode.UNAVAILABLE)
    stream = await engine.accept()
    stream.expect_leases(lease)
    await stream.welcome(resumed=[(lease, 2)])
    lease.silence("its end is stored")
    await play.runs_another(stream)


@case
async def j4_an_end_that_is_not_stored_is_sent_again(play: Play):
    """The end was lost with the stream: it is sent again, and so is what came before it, with the same numbers."""
    engine, stream = await play.connected(capacity=1)
    lease = play.job("ended", line("1"), line("2"), {"complete": 1})
    await stream.assign(lease)
    for _ in range(3):
        await lease.report()
    stream.end(grpc.StatusCode.UNAVAILABLE)
    stream = await engine.accept()
    stream.expect_leases(lease)
    await stream.welcome(resumed=[(lease, 1)])
    got = [text_of(await lease.store()) for _ in range(2)]
    if got != ["2", "complete"]:
        raise Violation(f"sent again: {got}; expected 2 and complete")
    await play.runs_another(stream)


@case
async def j5_a_call_waits_through_a_broken_stream(play: Play):
    """A checkpoint call that waits while the stream breaks returns when the engine has stored it, by the Welcome or by an answer."""
    for stored in (1, 0):
        engine, stream = await play.connected(capacity=1)
        lease = play.job("waits", HALF, {"print": "saved"}, {"complete": 1})
        await stream.assign(lease)
        await lease.report("checkpoint")
        stream.end(grpc.StatusCode.UNAVAILABLE)
        stream = await engine.accept()
        if play.has_printed(lease, "print", text="saved"):
            raise Violation("a checkpoint call returned because the stream broke")
        await stream.welcome(resumed=[(lease, stored)])
        if not stored:
            await lease.store("checkpoint")
        await play.printed(lease, "print", text="saved", patience=10)
        await lease.play_out()
        await play.worker.close()


@case
async def j5_a_stream_that_breaks_again_and_again(play: Play):
    """Three breaks in a row, each after part of the reports was stored: every report once per stream, none lost, order kept."""
    engine, stream = await play.connected(capacity=1)
    count = 40
    lease = play.job("often", *(line(str(n)) for n in range(1, count + 1)), {"complete": 1})
    await stream.assign(lease)
    stored = []
    for until in (7, 8, 30):
        while len(stored) < until:
            stored.append(text_of(await lease.store()))
        stream.end(grpc.StatusCode.UNAVAILABLE)
        stream = await engine.accept()
        stream.expect_leases(lease)
        await stream.welcome(resumed=[(lease, until)])
    before, end = await lease.play_out()
    stored += [text_of(report) for report in before]
    if stored != [str(n) for n in range(1, count + 1)] or end.WhichOneof("body") != "complete":
        raise Violation(f"stored over four streams: {stored}, then {text(end)}")


@case
async def e43_an_engine_that_is_away_is_tried_again_and_not_stormed(play: Play):
    """Nobody answers for some seconds: the worker tries a few times, ever more slowly, then finds the engine that is back."""
    shut = await Shut().start()
    play.closers.append(shut.close)
    await play.start(shut)
    await play.until(lambda: len(shut.connects) >= 4, "four tries to connect to an engine that is away")
    begin = shut.connects[0]
    # Not a wait for something: how often it knocks in four seconds is what is measured.
    await asyncio.sleep(max(0.0, begin + 4 - time.monotonic()))
    early, late = (sum(a <= at - begin < a + 2 for at in shut.connects) for a in (0, 2))
    # A worker may look at the engine in more than one way at a time: by a stream, and by its health.
    if early + late > 40 or late > early:
        raise Violation(f"{early} tries came in the first two seconds, {late} in the next two: no growing pause")
    await shut.close()
    engine = await play.engine(shut.port)
    stream = await engine.accept(20 + 5)
    await stream.welcome()
    await play.runs_another(stream, "the engine is back")


@case
async def e43_an_engine_that_drops_everybody_is_not_stormed(play: Play):
    """Welcomed and dropped at once, over and over: a Welcome alone does not start the pauses anew."""
    engine = await play.engine()
    await play.start(engine)
    times = []
    for _ in range(5):
        stream = await engine.accept()
        times.append(time.monotonic())
        await stream.welcome()
        stream.end()
    gaps = [b - a for a, b in zip(times, times[1:])]
    if gaps[-1] < 2 * gaps[0] and gaps[-1] < 1:
        raise Violation(f"the pauses between welcomes are {[round(gap, 2) for gap in gaps]} s: they do not grow")


@case
async def j36_an_engine_that_ends_the_stream_before_its_welcome_is_tried_again(play: Play):
    """The stream ends, in order or with a status, where the Welcome should be: the next try comes within seconds."""
    engine = await play.engine()
    await play.start(engine)
    for status in (None, grpc.StatusCode.UNAVAILABLE):
        stream = await engine.accept(8)
        stream.end(status)
    stream = await engine.accept(8)
    await stream.welcome()
    await play.runs_another(stream, "the engine has come to its senses")


@case
async def another_engine_is_taken_when_one_is_away(play: Play):
    """Of two engines one is away: the worker works for the other within seconds, wherever the dead one stands in the list."""
    for order in (0, 1):
        shut, engine = await Shut().start(), await play.engine()
        play.closers.append(shut.close)
        await play.start(*((shut, engine) if order == 0 else (engine, shut)))
        stream = await engine.accept(15)
        await stream.welcome()
        await play.runs_another(stream, "the other engine is away")
        await play.worker.close()


@case
async def j37_html_on_the_port_is_said_in_words(play: Play):
    """A web page where the engine should be: a line on stderr names the address and says gRPC; the worker goes on trying."""
    page = await WebPage().start()
    play.closers.append(page.close)
    worker = await play.start(page)

    def said():
        lines = [line for line in worker.errors.splitlines() if f"127.0.0.1:{page.port}" in line and "grpc" in line.lower()]
        return any(len(line) < 1000 for line in lines)

    await play.until(said, f"a line on stderr that names 127.0.0.1:{page.port} and says gRPC", 15)
    tried = len(page.connects)
    await play.until(lambda: len(page.connects) > tried, "another try to connect")
    await page.close()
    engine = await play.engine(page.port)
    stream = await engine.accept(25)
    await stream.welcome()
    await play.runs_another(stream, "the engine has taken the web server's place")
