"""The conformance worker of the Python library: one kind, `conformance`, whose input is a script.

What it must do is written in tests/conformance/README.md; everything else is the library's doing, which is what the suite judges.
"""

import asyncio
import base64
import json
import os
import pathlib
import time
from typing import Any

from tidegate import Cancelled, Context, JobFailed, ReportRejected, Worker

worker = Worker(
    capacity=int(os.environ.get("TIDEGATE_CAPACITY", "4")),
    grace=float(os.environ.get("TIDEGATE_GRACE_SECONDS", "5")),
)
SCHEMA = {"type": "object", "required": ["steps"], "properties": {"steps": {"type": "array"}}}


class Ended(Exception):
    """The script ended with a result."""


@worker.kind("conformance", description="Follows a script.", input_schema=SCHEMA, example={"steps": [{"complete": 1}]})
async def conformance(ctx: Context, input: Any) -> Any:
    say(ctx, "begin")
    try:
        for step in input["steps"]:
            [(name, argument)] = step.items()
            try:
                await run(ctx, name, argument)
            except ReportRejected as error:
                say(ctx, "rejected", message=str(error))
        return None
    except Ended as end:
        return end.args[0]
    finally:
        say(ctx, "end")


def say(ctx: Context, at: str, **more: str) -> None:
    print(json.dumps({"job": ctx.job_id, "attempt": ctx.attempt, "at": at, **more}), flush=True)


async def run(ctx: Context, name: str, argument: Any) -> None:
    match name:
        case "progress":
            numbers = {field: int(argument[field]) for field in ("done", "total") if field in argument}
            ctx.progress(**{**argument, **numbers})
        case "log":
            ctx.log(argument["text"], level=argument.get("level", "INFO").lower(), source=argument.get("source", ""))
        case "checkpoint":
            await ctx.checkpoint(argument["name"], base64.b64decode(argument["base64"]))
        case "custom":
            await ctx.custom(argument["name"], argument["value"])
        case "resumed":
            point = ctx.resume and {"name": ctx.resume.name, "base64": base64.b64encode(ctx.resume.data).decode()}
            await ctx.custom("resumed", {"attempt": ctx.attempt, "checkpoint": point})
        case "oversized":
            [(what, size)] = argument.items()
            match what:
                case "checkpoint":
                    await ctx.checkpoint("big", bytes(size))
                case "custom":
                    await ctx.custom("big", "x" * size)
                case "log":
                    ctx.log("x" * size)
                case "result":
                    raise Ended("x" * size)
        case "print":
            say(ctx, "print", text=argument)
        case "sleep":
            await asyncio.sleep(argument / 1000)
        case "await_file":
            path = pathlib.Path(argument)
            while not path.exists():  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(0.02)
        case "wait_stop":
            try:
                # It comes once: a step before may have swallowed it.
                while ctx.stop_reason is None:
                    await asyncio.Event().wait()
            finally:
                say(ctx, "stopping")
            raise Cancelled
        case "ignore_stop":
            until = time.monotonic() + argument / 1000
            while (left := until - time.monotonic()) > 0:
                try:
                    await asyncio.sleep(left)
                except asyncio.CancelledError:
                    pass
        case "busy":
            await asyncio.to_thread(compute, argument / 1000)
        case "flood":
            for i in range(argument["logs"]):
                ctx.log(f"{i} ".ljust(argument["bytes"], "x"))
                await ctx.drain()
        case "progress_flood":
            for i in range(1, argument + 1):
                ctx.progress(done=i, total=argument)
                await asyncio.sleep(0)
        case "fail":
            raise JobFailed(argument["code"], argument["message"], retryable=argument["retryable"])
        case "throw":
            raise RuntimeError(argument)
        case "complete":
            raise Ended(argument)
        case _:
            raise JobFailed("input_invalid", f"there is no step {name!r}")


def compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


if __name__ == "__main__":
    worker.run()
