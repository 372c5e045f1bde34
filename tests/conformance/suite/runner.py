"""Runs cases against a command, several at a time, and says what came of each: one line, and why when it failed."""

import argparse
import asyncio
import ctypes
import inspect
import os
import shutil
import signal
import sys
import time
import traceback

from .cases import load
from .play import Play, Violation

HELP = """Judges a worker of Tidegate: plays the engine, case by case, against a conformance worker started with CMD.

The conformance worker is described in tests/conformance/README.md; it takes its settings from the environment
(TIDEGATE_ENGINE, TIDEGATE_CAPACITY, TIDEGATE_GRACE_SECONDS), which every case sets anew."""

EXAMPLES = """examples:
  tests/conformance/run -- node conformance-worker.mjs
  tests/conformance/run --case j1 --case drain -- ./worker     cases whose names contain j1 or drain
  tests/conformance/run --verbose --jobs 1 --case j5_a_reset -- ./worker     with every message

exit code: 0 all passed, 1 some failed, 64 the command line is wrong"""


class Outcome:
    def __init__(self, name: str, seconds: float, why: str | None, errors: str, protocol: list[str]):
        self.name, self.seconds, self.why, self.errors, self.protocol = name, seconds, why, errors, protocol


async def run_case(name: str, case, command: list[str], verbose: bool) -> Outcome:
    """Plays one case from start to end; whatever it leaves behind is cleaned up."""
    begin = time.monotonic()
    play = Play(command, verbose)
    why, errors = None, ""
    try:
        await case(play)
        # A violation that was seen in the last moment.
        await asyncio.sleep(0)
    except Violation as violation:
        why = play.violation or str(violation)
    except asyncio.CancelledError:
        if play.violation is None:
            raise
        play.task.uncancel() if hasattr(play.task, "uncancel") else None
        why = play.violation
    except Exception:
        why = "the suite itself failed:\n" + traceback.format_exc()
    finally:
        # Also when the whole run is to end.
        why = why or play.violation
        errors = play.worker.errors if play.worker else ""
        try:
            await play.close()
        except Exception:
            why = why or "cleaning up failed:\n" + traceback.format_exc()
    return Outcome(name, time.monotonic() - begin, why, errors, play.protocol)


async def run(names: list[str], command: list[str], jobs: int, verbose: bool, show=print) -> list[Outcome]:
    """Runs the cases and shows a line for each as it ends."""
    cases, gate, outcomes = load(), asyncio.Semaphore(jobs), []

    async def one(name: str) -> None:
        async with gate:
            # A task of its own: a violation cancels the case's task, not this one.
            outcome = await asyncio.ensure_future(run_case(name, cases[name], command, verbose))
        outcomes.append(outcome)
        show(report(outcome, verbose))

    await asyncio.gather(*(one(name) for name in names))
    return outcomes


def supervised(work):
    """The work's result. It is cancelled, so that it cleans up, by SIGTERM, SIGHUP, and the end of who started this."""

    async def cancelled_by_signals():
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        if sys.platform == "linux":
            PR_SET_PDEATHSIG = 1
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        return await work

    try:
        return asyncio.run(cancelled_by_signals())
    except asyncio.CancelledError:
        sys.exit("ended by a signal")


def report(outcome: Outcome, verbose: bool) -> str:
    if outcome.why is None:
        return f"ok    {outcome.name} ({outcome.seconds:.1f} s)"
    lines = [f"FAIL  {outcome.name} ({outcome.seconds:.1f} s)", f"      {outcome.why}"]
    if not verbose and outcome.protocol:
        lines += ["      the last messages:"] + [f"        {line[:200]}" for line in outcome.protocol[-8:]]
    if errors := outcome.errors.strip().splitlines():
        lines += ["      the worker's stderr:"] + [f"        {line[:300]}" for line in errors[-8:]]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tests/conformance/run", description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", default=[], metavar="TEXT", help="only cases whose names contain TEXT; may be repeated")
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="how many cases run at the same time (default 4)")
    parser.add_argument("--list", action="store_true", help="show the cases and what each demands, and run none")
    parser.add_argument("--verbose", action="store_true", help="show every message")
    parser.add_argument("command", nargs="*", metavar="CMD", help="the conformance worker and its arguments, after --")
    options = parser.parse_args(arguments)
    cases = load()
    names = [name for name in cases if not options.case or any(text in name for text in options.case)]
    if options.list:
        for name in names:
            print(f"{name}\n    {inspect.getdoc(cases[name])}")
        return 0
    if not options.command or not names or options.jobs < 1:
        parser.print_usage(sys.stderr)
        print("tests/conformance/run: " + ("no such case" if options.command else "no command to judge"), file=sys.stderr)
        return os.EX_USAGE
    if shutil.which(options.command[0]) is None:
        print(f"tests/conformance/run: there is no program {options.command[0]}", file=sys.stderr)
        return os.EX_USAGE
    begin = time.monotonic()
    sys.stdout.reconfigure(line_buffering=True)
    outcomes = supervised(run(names, options.command, options.jobs, options.verbose))
    failed = [outcome.name for outcome in outcomes if outcome.why is not None]
    print(f"\nconformance of {' '.join(options.command)}: after {time.monotonic() - begin:.0f} s")
    print(f"conformance: {len(outcomes) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0
