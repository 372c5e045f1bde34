"""Sizes: what is too large is refused before it is sent, what is too much waits."""

import json

from ..lease import text
from ..play import Play, Violation
from . import case

MIB = 1024 * 1024


@case
async def j37_what_is_too_large_is_refused_before_it_is_sent(play: Play):
    """The Welcome's limits are kept to the byte: larger checkpoints and custom events are the call's error, nothing is sent."""
    _, stream = await play.connected(checkpoint=64, custom=64, result=64)
    lease = play.job(
        "sizes",
        {"oversized": {"checkpoint": 65}},
        {"oversized": {"custom": 63}},
        {"oversized": {"checkpoint": 64}},
        {"oversized": {"custom": 62}},
        {"oversized": {"result": 63}},
    )
    await stream.assign(lease)
    checkpoint = await lease.store("checkpoint")
    if len(checkpoint.checkpoint.data) != 64:
        raise Violation(f"a checkpoint of {len(checkpoint.checkpoint.data)} bytes was sent; the Welcome allows 64")
    custom = await lease.store("custom")
    if len(custom.custom.json) != 64:
        raise Violation(f"a custom event of {len(custom.custom.json)} bytes was sent; the Welcome allows 64")
    rejected = [line.get("message") for line in play.worker.lines if line.get("at") == "rejected"]
    if len(rejected) != 2 or not all(rejected):
        raise Violation(f"expected two calls to be refused with a message, got {rejected}")
    end = await lease.store()
    if end.WhichOneof("body") != "fail" or end.fail.code != "result_too_large" or end.fail.retryable:
        raise Violation(f"a result beyond the limit ended the job with {text(end)}; expected a final failure 'result_too_large'")
    await play.runs_another(stream)


@case
async def j37_limits_that_the_welcome_does_not_say_have_defaults(play: Play):
    """Without limits in the Welcome, 64 KiB, 64 KiB and 256 KiB hold."""
    _, stream = await play.connected(checkpoint=0, custom=0, result=0)
    lease = play.job(
        "defaults",
        {"oversized": {"checkpoint": 65537}},
        {"oversized": {"custom": 65535}},
        {"oversized": {"checkpoint": 65536}},
        {"oversized": {"custom": 65534}},
        {"oversized": {"result": 262142}},
    )
    await stream.assign(lease)
    checkpoint, custom = await lease.store("checkpoint"), await lease.store("custom")
    if len(checkpoint.checkpoint.data) != 65536 or len(custom.custom.json) != 65536:
        raise Violation(f"sent: {len(checkpoint.checkpoint.data)} and {len(custom.custom.json)} bytes; the largest are 65536")
    end = await lease.store()
    if end.WhichOneof("body") != "complete" or len(end.complete.result_json) != 262144:
        raise Violation(f"a result of exactly 262144 bytes ended the job with {text(end)}")


@case
async def j40_a_long_log_line_is_cut_on_a_character(play: Play):
    """A log line beyond 16 KiB is cut, on a character's boundary, and still sent."""
    _, stream = await play.connected()
    lease = play.job("lines", {"oversized": {"log": 10 * MIB}}, {"log": {"text": "ä" * 9001}}, {"log": {"text": "y" * 16384}})
    await stream.assign(lease)
    for first, at_least in (("x", 15000), ("ä", 15000), ("y", 16384)):
        line = (await lease.store("log")).log.text
        size = len(line.encode())
        if not at_least <= size <= 16384 or not line.startswith(first) or "\ufffd" in line:
            raise Violation(f"a long line of {first!r} arrived with {size} bytes, beginning {line[:10]!r}: at most 16384, cut as little as needed")
    await lease.play_out()


@case
async def reserved_names_are_refused(play: Play):
    """A custom event that is named like Tidegate's or EventSource's own, or is malformed, is the call's error; nothing is sent."""
    _, stream = await play.connected()
    names = ["error", "complete", "Chart", "", "a b", "x" * 65]
    lease = play.job("names", *({"custom": {"name": name, "value": 1}} for name in names), {"custom": {"name": "chart", "value": 1}})
    await stream.assign(lease)
    report = await lease.store("custom")
    if report.custom.name != "chart":
        raise Violation(f"a custom event named {report.custom.name!r} was sent")
    await lease.play_out()


@case
async def e36_a_flood_waits_for_a_slow_engine(play: Play):
    """80 MB of log lines that nobody answers: the memory stays bounded, and every line comes in the end, or its loss is said."""
    _, stream = await play.connected(ping=1.0)
    lines, size = 5_000, 16_000
    await play.runs_another(stream, "the worker is to be warm")
    warm = play.worker.memory()
    lease = play.job("flood", {"flood": {"logs": lines, "bytes": size}}, {"complete": "flooded"})
    await stream.assign(lease)
    await lease.report("log")
    # The worker has said what it wants to say when it pings.
    until = stream.pings + 2
    while stream.pings < until:
        await play.elapsed(0.05)
        _is_bounded(play, warm, "while nobody answered its reports")
    first = lease.seen[1]
    await lease.answer(first)
    before, end = await lease.play_out(patience=60)
    _no_line_vanishes([first, *before], lines)
    if end.WhichOneof("body") != "complete":
        raise Violation(f"the job ended with {text(end)}")


@case
async def e36_a_flood_waits_for_an_engine_that_does_not_read(play: Play):
    """The same while the engine does not even read: bounded memory, and nothing vanishes in silence."""
    _, stream = await play.connected(ping=20.0)
    lines, size = 5_000, 16_000
    await play.runs_another(stream, "the worker is to be warm")
    warm = play.worker.memory()
    lease = play.job("flood", {"flood": {"logs": lines, "bytes": size}}, {"complete": "flooded"})
    await stream.assign(lease)
    await lease.report("log")
    stream.reading.clear()
    # Until it grows no more.
    last, now = 0, warm
    while now - last > MIB:
        await play.elapsed(0.5)
        last, now = now, _is_bounded(play, warm, "while the engine did not read")
    stream.reading.set()
    first = lease.seen[1]
    await lease.answer(first)
    before, end = await lease.play_out(patience=60)
    _no_line_vanishes([first, *before], lines)
    if end.WhichOneof("body") != "complete":
        raise Violation(f"the job ended with {text(end)}")


def _is_bounded(play: Play, warm: int, when: str) -> int:
    """The worker's memory, which may not be much more than `warm`."""
    now = play.worker.memory()
    if now - warm > 64 * MIB:
        raise Violation(f"the worker's memory grew by {(now - warm) // MIB} MiB {when}; at most 64 MiB")
    return now


def _no_line_vanishes(reports, lines: int) -> None:
    """Lines are in order; where some are missing, a line of level WARN stands in their place."""
    expected, warned = 0, False
    for report in reports:
        if report.WhichOneof("body") != "log":
            raise Violation(f"the flood has a {report.WhichOneof('body')} in it")
        word = report.log.text.partition(" ")[0]
        if report.log.level == 3 and not word.isdigit():
            warned = True
            continue
        index = int(word) if word.isdigit() else -1
        if index < expected or (index > expected and not warned):
            raise Violation(f"expected log line {expected}, got {json.dumps(report.log.text[:40])}, and no line of level WARN says that some are missing")
        expected, warned = index + 1, False
    if expected != lines and not warned:
        raise Violation(f"the last {lines - expected} lines are missing, and no line of level WARN says so")
