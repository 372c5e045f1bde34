"""Running one job's handler, and what its end means as a report. Knows nothing of leases, connections and other jobs."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from tidegate import _limits
from tidegate.context import Context, SyncContext
from tidegate.errors import JobFailed, JobReleased
from tidegate.v1 import job_pb2 as job
from tidegate.v1 import worker_service_pb2 as wire

logger = logging.getLogger("tidegate.worker")

#: Why jobs are given back at the end.
LEAVING = "the worker shuts down"


async def run(context: Context, handler: Callable[[Any, Any], Any], threaded: bool, max_result: Callable[[], int]) -> wire.Report:
    """Runs a handler to its end; `threaded` says that it is a plain function. Returns the report that ends the job."""
    try:
        try:
            context.input = json.loads(context.input_json)
        except (ValueError, RecursionError) as error:
            raise JobFailed("input_invalid", f"the input is not JSON: {error}") from None
        if threaded:
            sync = SyncContext(context, asyncio.get_running_loop())
            result = await _in_thread(lambda: handler(sync, context.input), context.job_id)
        else:
            result = await handler(context, context.input)
        return _completed(result, max_result())
    except BaseException as error:
        return _not_completed(context, error)


def _completed(result: Any, limit: int) -> wire.Report:
    try:
        text = _limits.to_json(result)
    except ValueError as error:
        raise JobFailed("result_invalid", f"the result is {error}") from None
    if why := _limits.too_large("the result", len(text.encode()), limit):
        raise JobFailed("result_too_large", why)
    return wire.Report(complete=job.Completed(result_json=text))


def _not_completed(context: Context, error: BaseException) -> wire.Report:
    if context.stop_reason is not None:
        # Told to make room, a job may fail in any way: that says nothing about the job.
        return released(LEAVING)
    if isinstance(error, JobReleased):
        return released(str(error))
    if isinstance(error, JobFailed):
        return failed(error.code, error.message, error.retryable)
    # The traceback is for whoever runs the worker, not for whoever watches the job.
    logger.error("job %s: the handler failed", context.job_id, exc_info=error)
    if isinstance(error, asyncio.CancelledError):
        return failed("stopped", "the handler stopped although nobody told it to", True)
    return failed("error", f"{type(error).__name__}: {error}", True)


def released(reason: str) -> wire.Report:
    """The report that gives a job back."""
    return wire.Report(released=wire.Released(reason=_limits.cut(reason, _limits.MAX_TEXT_BYTES)))


def failed(code: str, message: str, retryable: bool) -> wire.Report:
    """The report of a failure."""
    code = _limits.cut(code, _limits.MAX_NAME_BYTES)
    message = _limits.cut(message, _limits.MAX_TEXT_BYTES)
    return wire.Report(fail=job.Failed(code=code, message=message, retryable=retryable))


async def _in_thread(work: Callable[[], Any], name: str) -> Any:
    """Runs `work` in a thread of its own, which does not keep the process from ending.

    Cancelled, this stops waiting for it; it cannot stop the thread.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if not outcome.done():
            outcome.set_result((value, error))

    def in_thread() -> None:
        value, failure = None, None
        try:
            value = work()
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, value, failure)
        except RuntimeError:
            # The loop is closed: the worker has ended, and nobody waits.
            pass

    threading.Thread(target=in_thread, name=f"tidegate-{name}", daemon=True).start()
    value, failure = await outcome
    if failure is not None:
        raise failure
    return value
