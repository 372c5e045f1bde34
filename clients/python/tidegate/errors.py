"""What can go wrong, as types to catch. The map from gRPC statuses to them is here and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

__all__ = [
    "CallFailed",
    "Cancelled",
    "Conflict",
    "Denied",
    "InvalidRequest",
    "JobFailed",
    "JobReleased",
    "LimitReached",
    "NotFound",
    "ReportRejected",
    "TidegateError",
    "Unavailable",
    "WrongState",
]


class TidegateError(Exception):
    """Everything that this library raises, except `Cancelled`."""


# For workers.


class Cancelled(asyncio.CancelledError):
    """The job is to stop: it was called off, is another worker's now, or the worker shuts down.

    It is no `Exception`, as asyncio's own: an `except Exception` around a checkpoint does not swallow it.
    """


class JobFailed(TidegateError):
    """Raised by a handler: the attempt failed. `code` is a short stable word for programs, `message` is for people."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable


class JobReleased(TidegateError):
    """Raised by a handler: gives the job back unfinished. Another worker goes on; it counts as no failure."""


class ReportRejected(TidegateError):
    """A report broke a rule, such as a limit on its size. It was not stored; the job may go on."""


# For callers.


class CallFailed(TidegateError):
    """A call had no result. `code` is the gRPC status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message or code.name)
        self.code = code


class InvalidRequest(CallFailed):
    """A field of the request is wrong; the message names every wrong field (INVALID_ARGUMENT)."""


class NotFound(CallFailed):
    """The job does not exist, or is somebody else's (NOT_FOUND)."""


class WrongState(CallFailed):
    """The job's state does not allow it (FAILED_PRECONDITION)."""


class Conflict(CallFailed):
    """The idempotency key was used with another request (ALREADY_EXISTS)."""


class LimitReached(CallFailed):
    """A limit is reached; later the call may succeed (RESOURCE_EXHAUSTED)."""


class Denied(CallFailed):
    """The caller did not prove who it is, or may not do this (UNAUTHENTICATED, PERMISSION_DENIED)."""


class Unavailable(CallFailed):
    """No engine answered in time, or its log is away (UNAVAILABLE, DEADLINE_EXCEEDED)."""


_BY_CODE: dict[grpc.StatusCode, Callable[[grpc.StatusCode, str], CallFailed]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitReached,
    grpc.StatusCode.UNAUTHENTICATED: Denied,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
}


def from_status(error: grpc.aio.AioRpcError) -> CallFailed:
    """The typed error of a gRPC status."""
    return _BY_CODE.get(error.code(), CallFailed)(error.code(), error.details() or "")
