"""Workers and callers for Tidegate."""

from tidegate._version import __version__
from tidegate.client import Client
from tidegate.context import Context, Resume, StopReason, SyncContext
from tidegate.errors import (
    CallFailed,
    Cancelled,
    Conflict,
    Denied,
    InvalidRequest,
    JobFailed,
    JobReleased,
    LimitReached,
    NotFound,
    ReportRejected,
    TidegateError,
    Unavailable,
    WrongState,
)
from tidegate.types import Event, Gap, Job, JobState
from tidegate.worker import Worker

__all__ = [
    "CallFailed",
    "Cancelled",
    "Client",
    "Conflict",
    "Context",
    "Denied",
    "Event",
    "Gap",
    "InvalidRequest",
    "Job",
    "JobFailed",
    "JobReleased",
    "JobState",
    "LimitReached",
    "NotFound",
    "ReportRejected",
    "Resume",
    "StopReason",
    "SyncContext",
    "TidegateError",
    "Unavailable",
    "Worker",
    "WrongState",
    "__version__",
]
