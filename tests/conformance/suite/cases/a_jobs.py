"""Hello, one job with everything it can say, several at once, and jobs that end badly."""

import json

from ..contract import v1
from ..lease import text
from ..play import Play, Violation, b64
from . import case


@case
async def hello_is_first_and_complete(play: Play):
    """Hello comes first, once and alone, and names the worker, its library, its capacity and its kind."""
    engine = await play.engine()
    await play.start(engine, capacity=3)
    stream = await engine.accept()
    hello = stream.hello
    for field in ("name", "client"):
        if not getattr(hello, field):
            raise Violation(f"Hello has no {field}")
    if "/" not in hello.client:
        raise Violation(f"Hello.client is {hello.client!r}; it looks like 'language/version'")
    if hello.capacity != 3:
        raise Violation(f"TIDEGATE_CAPACITY is 3, Hello.capacity is {hello.capacity}")
    kinds = [kind.kind for kind in hello.kinds]
    if kinds != ["conformance"]:
        raise Violation(f"Hello offers {kinds}; the conformance worker offers 'conformance'")
    kind = hello.kinds[0]
    if not kind.description:
        raise Violation("the kind has no description")
    for field in ("input_schema_json", "example_json"):
        try:
            json.loads(getattr(kind, field))
        except ValueError:
            raise Violation(f"the kind's {field} is no JSON: {getattr(kind, field)[:80]!r}") from None
    stream.expect_leases()
    # A while in which whatever does not wait for the Welcome would come.
    await play.elapsed(0.3)
    await stream.welcome(ping=1.0)
    # Nothing but pings comes from a worker without jobs; a second Hello would be a violation by itself.
    await stream.quiet()


@case
async def j38_a_job_reports_everything_in_order(play: Play):
    """A job's reports come in the order of its calls, numbered from 1, with the token, their contents untouched."""
    _, stream = await play.connected()
    data = bytes(range(256))
    value = {"text": "ä€🌊\u2028\"\\\n", "n": [1, 2.5, None, True]}
    lease = play.job(
        "everything",
        {"log": {"text": "grüße 🌊", "level": "WARN", "source": "stdout"}},
        {"log": {"text": "plain"}},
        {"log": {"text": "d", "level": "DEBUG"}},
        {"log": {"text": "e", "level": "ERROR"}},
        {"progress": {"percent": 12.5, "unit": "rows", "done": "9007199254740993", "total": "18446744073709551615", "message": "half ä"}},
        {"checkpoint": {"name": "first", "base64": b64(data)}},
        {"progress": {"step": 2, "steps": 4}},
        {"custom": {"name": "chart.v2", "value": value}},
        {"complete": {"ok": [1, "ü"]}},
    )
    await stream.assign(lease)
    before, end = await lease.play_out()
    kinds = [report.WhichOneof("body") for report in before]
    expected = ["log"] * 4 + ["progress", "checkpoint", "progress", "custom"]
    if kinds != expected:
        raise Violation(f"the reports are {kinds}, then {text(end)}; the script says {expected}")
    logs = [(report.log.level, report.log.text, report.log.source) for report in before[:4]]
    wanted = [(3, "grüße 🌊", "stdout"), (2, "plain", ""), (1, "d", ""), (4, "e", "")]
    if logs != wanted:
        raise Violation(f"the log lines (level, text, source) are {logs}; expected {wanted}")
    progress = before[4].progress
    got = (progress.percent, progress.done, progress.total, progress.unit, progress.message, progress.HasField("step"))
    want = (12.5, 9007199254740993, 18446744073709551615, "rows", "half ä", False)
    if got != want:
        raise Violation(f"progress (percent, done, total, unit, message, has step) is {got}; expected {want}: 64-bit numbers stay exact")
    if before[5].checkpoint.data != data or before[5].checkpoint.name != "first":
        raise Violation("the checkpoint's name or bytes are not those that were saved")
    progress = before[6].progress
    if (progress.step, progress.steps, progress.HasField("percent"), progress.HasField("done")) != (2, 4, False, False):
        raise Violation(f"the second progress is {progress}; fields that are not given stay unset")
    if before[7].custom.name != "chart.v2" or json.loads(before[7].custom.json) != value:
        raise Violation(f"the custom event is {before[7].custom}")
    if end.WhichOneof("body") != "complete" or json.loads(end.complete.result_json) != {"ok": [1, "ü"]}:
        raise Violation(f"the job ended with {end}")
    await play.printed(lease, "end")


@case
async def a_job_without_a_result_completes_with_null(play: Play):
    """A handler that returns nothing completes with the JSON text null."""
    _, stream = await play.connected()
    lease = play.job("nothing", {"log": {"text": "x"}})
    await stream.assign(lease)
    _, end = await lease.play_out()
    if end.WhichOneof("body") != "complete" or end.complete.result_json.strip() != "null":
        raise Violation(f"the job ended with {end}; expected the result null")


@case
async def the_last_progress_comes_before_what_follows_it(play: Play):
    """Progress may be merged on the way, but grows, and its last value comes before a checkpoint and before the end."""
    _, stream = await play.connected()
    count = 3000
    lease = play.job("progress", {"progress_flood": count}, {"checkpoint": {"name": "c", "base64": ""}}, {"progress_flood": count})
    await stream.assign(lease)
    before, end = await lease.play_out()
    at = [report.WhichOneof("body") for report in before].index("checkpoint")
    for part, where in ((before[:at], "the checkpoint"), (before[at + 1 :], "the end")):
        done = [report.progress.done for report in part]
        if done != sorted(set(done)):
            raise Violation(f"progress does not grow: {done[:20]} …")
        if not done or done[-1] != count:
            raise Violation(f"the last progress before {where} is {done[-1:]}, not {count}: the last value is never lost")
    if end.WhichOneof("body") != "complete":
        raise Violation(f"the job ended with {end}")


@case
async def jobs_run_side_by_side_up_to_the_capacity(play: Play):
    """As many jobs as the capacity says run at the same time; one more is given back; a freed slot is used again."""
    _, stream = await play.connected(capacity=2)
    gate = play.gate()
    one, two = (play.job(name, {"log": {"text": "begun"}}, {"await_file": str(gate)}) for name in ("one", "two"))
    for lease in (one, two):
        await stream.assign(lease)
        await lease.store("log")
    beyond = play.job("beyond", {"complete": 1})
    await stream.assign(beyond)
    await beyond.store("released")
    if play.has_printed(beyond, "begin"):
        raise Violation("a third job was begun although the capacity is 2")
    gate.touch()
    for lease in (one, two):
        await lease.play_out()
    await play.runs_another(stream, "a slot is free again")


@case
async def an_unknown_kind_fails(play: Play):
    """An assignment of a kind that the worker does not offer fails, finally, with the code unknown_kind."""
    _, stream = await play.connected()
    lease = play.job("stranger", kind="strange")
    await stream.assign(lease)
    report = await lease.store("fail")
    if report.fail.code != "unknown_kind" or report.fail.retryable:
        raise Violation(f"expected a final failure with the code 'unknown_kind', got {report.fail}")
    await play.runs_another(stream)


@case
async def an_assignment_that_is_held_already_is_ignored(play: Play):
    """The same assignment twice (same token) runs once."""
    _, stream = await play.connected()
    gate = play.gate()
    lease = play.job("twice", {"log": {"text": "begun"}}, {"await_file": str(gate)})
    await stream.assign(lease)
    await lease.store("log")
    await stream.send(v1.WorkResponse(assignment=lease.assignment))
    await play.runs_another(stream, "the stream still works")
    gate.touch()
    await lease.play_out()
    begun = [line for line in play.worker.lines if line.get("job") == "twice" and line.get("at") == "begin"]
    if len(begun) != 1:
        raise Violation(f"the handler began {len(begun)} times")


@case
async def failures_pass_as_they_are(play: Play):
    """A failure's code, message and whether it may be retried reach the engine unchanged."""
    _, stream = await play.connected()
    for retryable in (True, False):
        lease = play.job(f"fails-{retryable}", {"fail": {"code": "not_found", "message": "no such fïle", "retryable": retryable}})
        await stream.assign(lease)
        _, end = await lease.play_out()
        got = (end.fail.code, end.fail.message, end.fail.retryable)
        if got != ("not_found", "no such fïle", retryable):
            raise Violation(f"the failure (code, message, retryable) is {got}")


@case
async def j9_an_unexpected_error_fails_its_job_alone(play: Play):
    """An error that the library does not know fails the job, with its message and no stack trace; other jobs run on."""
    _, stream = await play.connected(capacity=2)
    gate = play.gate()
    other = play.job("other", {"log": {"text": "begun"}}, {"await_file": str(gate)})
    await stream.assign(other)
    await other.store("log")
    lease = play.job("throws", {"log": {"text": "begun"}}, {"throw": "oh dear"})
    await stream.assign(lease)
    _, end = await lease.play_out()
    if end.WhichOneof("body") != "fail" or not end.fail.code:
        raise Violation(f"the job ended with {end}; expected a failure with a code")
    if "oh dear" not in end.fail.message:
        raise Violation(f"the failure's message {end.fail.message!r} does not say what was thrown ('oh dear')")
    if len(end.fail.message.splitlines()) > 1:
        raise Violation(f"the failure's message has several lines, such as a stack trace, which viewers would see: {end.fail.message!r}")
    gate.touch()
    _, end = await other.play_out()
    if end.WhichOneof("body") != "complete":
        raise Violation(f"the other job ended with {end}")
