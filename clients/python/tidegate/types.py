"""Jobs and events as callers see them: frozen dataclasses made from the messages of the contract. Pure.

Options are passed through by the names and the meaning that `JobOptions` in `proto/tidegate/v1/job.proto` gives them, so a
new one needs no new code here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tidegate.v1 import job_pb2
from tidegate.v1 import job_service_pb2 as wire


class JobState(str, Enum):
    """Where a job stands."""

    UNKNOWN = "UNKNOWN"
    SCHEDULED = "SCHEDULED"
    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class StateChanged:
    """The job moved to another state that is not terminal, or a cancellation was asked for."""

    state: JobState
    reason: str
    run_at: datetime | None
    cancel_requested: bool


@dataclass(frozen=True)
class Progress:
    """How far the work is; what is unknown is None or empty. `rate` is in units per second."""

    percent: float | None
    done: int | None
    total: int | None
    unit: str
    step: int | None
    steps: int | None
    step_name: str
    rate: float | None
    eta: timedelta | None
    message: str


@dataclass(frozen=True)
class Log:
    """One line said by the job. `level` is `debug`, `info`, `warn` or `error`."""

    level: str
    text: str
    source: str


@dataclass(frozen=True)
class Checkpoint:
    """A point from which the job can resume; viewers see its name and its size in bytes only."""

    name: str
    size: int


@dataclass(frozen=True)
class Custom:
    """Something the job published under a name of its own."""

    name: str
    value: Any


@dataclass(frozen=True)
class Completed:
    """Terminal: the job ended with a result."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """Terminal: the job ended with an error."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True)
class JobCancelled:
    """Terminal: the job was called off."""

    by: str
    reason: str


@dataclass(frozen=True)
class Gap:
    """Events `first` to `last` cannot be had any more: `trimmed`, or of a log that was lost (`reset`)."""

    first: int
    last: int
    reason: str
    snapshot: Job


@dataclass(frozen=True)
class Unknown:
    """An event that only a newer engine has."""


What = StateChanged | Progress | Log | Checkpoint | Custom | Completed | Failed | JobCancelled | Gap | Unknown


@dataclass(frozen=True)
class Job:
    """A job, as it was after its event `last_seq`."""

    job_id: str
    kind: str
    tenant: str
    owner: str
    state: JobState
    attempt: int
    input: Any
    #: The options in force, defaults filled in; durations in seconds.
    options: Mapping[str, Any]
    created_at: datetime | None
    updated_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    run_at: datetime | None
    progress: Progress | None
    checkpoint: Checkpoint | None
    #: Whether a cancellation was asked for.
    cancel_requested: bool
    #: How the job ended; None before.
    outcome: Completed | Failed | JobCancelled | None
    last_seq: int
    first_seq: int
    epoch: str

    @property
    def cursor(self) -> str:
        """The cursor behind everything that this snapshot knows."""
        return f"{self.last_seq}-{self.epoch}"


@dataclass(frozen=True)
class Event:
    """One entry of a job's log; for a `Gap`, `seq` is the last missing event and `time` is None."""

    seq: int
    time: datetime | None
    attempt: int
    what: What
    #: Where to go on after this event.
    cursor: str

    @property
    def is_terminal(self) -> bool:
        """Whether the job ended with this event; a retry may still append to its log."""
        return isinstance(self.what, (Completed, Failed, JobCancelled))


@dataclass(frozen=True)
class JobPage:
    """A page of jobs, newest first. `next_page` is empty when it is the last."""

    jobs: list[Job]
    next_page: str


@dataclass(frozen=True)
class KindOffer:
    """A kind of job that workers have offered, and whether one does now."""

    kind: str
    description: str
    input_schema: Any
    example: Any
    live: bool


_LEVELS = {job_pb2.LOG_LEVEL_DEBUG: "debug", job_pb2.LOG_LEVEL_WARN: "warn", job_pb2.LOG_LEVEL_ERROR: "error"}


def job(message: job_pb2.Job) -> Job:
    """A job from its message."""
    ended = message.WhichOneof("outcome")
    outcome = what(getattr(message, ended)) if ended else None
    progress = what(message.progress) if message.HasField("progress") else None
    checkpoint = what(message.checkpoint) if message.HasField("checkpoint") else None
    assert outcome is None or isinstance(outcome, (Completed, Failed, JobCancelled))
    assert progress is None or isinstance(progress, Progress)
    assert checkpoint is None or isinstance(checkpoint, Checkpoint)
    return Job(
        job_id=message.job_id,
        kind=message.kind,
        tenant=message.tenant,
        owner=message.owner,
        state=_state(message.state),
        attempt=message.attempt,
        input=_json(message.input_json),
        options={field.name: _plain(value) for field, value in message.options.ListFields()},
        created_at=_time(message, "created_at"),
        updated_at=_time(message, "updated_at"),
        started_at=_time(message, "started_at"),
        finished_at=_time(message, "finished_at"),
        run_at=_time(message, "run_at"),
        progress=progress,
        checkpoint=checkpoint,
        cancel_requested=message.HasField("cancel_requested"),
        outcome=outcome,
        last_seq=message.last_seq,
        first_seq=message.first_seq,
        epoch=message.epoch,
    )


def event(message: job_pb2.Event, epoch: str) -> Event:
    """An event of the log `epoch` from its message."""
    kind = message.WhichOneof("kind")
    return Event(
        seq=message.seq,
        time=_time(message, "time"),
        attempt=message.attempt,
        what=what(getattr(message, kind)) if kind else Unknown(),
        cursor=f"{message.seq}-{epoch}",
    )


def gap(message: wire.Gap) -> Event:
    """A gap in the log, as an event."""
    snapshot = job(message.snapshot)
    missing = Gap(message.from_seq, message.to_seq, message.reason, snapshot)
    return Event(message.to_seq, None, 0, missing, f"{message.to_seq}-{snapshot.epoch}")


def kind_offer(message: wire.KindOffer) -> KindOffer:
    """A kind from its message."""
    return KindOffer(
        message.kind, message.description, _json(message.input_schema_json), _json(message.example_json), message.live
    )


def what(message: Message) -> What:
    """What an event is about, from its message."""
    match message:
        case job_pb2.StateChanged():
            return StateChanged(
                _state(message.state), message.reason, _time(message, "run_at"), message.HasField("cancel_requested")
            )
        case job_pb2.Progress():
            return Progress(
                percent=_known(message, "percent"),
                done=_known(message, "done"),
                total=_known(message, "total"),
                unit=message.unit,
                step=_known(message, "step"),
                steps=_known(message, "steps"),
                step_name=message.step_name,
                rate=_known(message, "rate"),
                eta=message.eta.ToTimedelta() if message.HasField("eta") else None,
                message=message.message,
            )
        case job_pb2.Log():
            return Log(_LEVELS.get(message.level, "info"), message.text, message.source)
        case job_pb2.Checkpoint():
            return Checkpoint(message.name, message.size)
        case job_pb2.Custom():
            return Custom(message.name, _json(message.json))
        case job_pb2.Completed():
            return Completed(_json(message.result_json))
        case job_pb2.Failed():
            return Failed(message.code, message.message, message.retryable)
        case job_pb2.Cancelled():
            return JobCancelled(message.by, message.reason)
    return Unknown()


def options(values: Mapping[str, Any]) -> job_pb2.JobOptions:
    """The options of a submission, by the names of `JobOptions`.

    Durations are seconds or `timedelta`, times are `datetime` with a time zone, messages are mappings. Raises ValueError for
    an unknown name or a value that does not fit.
    """
    message = job_pb2.JobOptions()
    _fill(message, values, "options")
    return message


def _fill(message: Message, values: Mapping[str, Any], where: str) -> None:
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in values.items():
        if value is None:
            continue
        if name not in fields:
            raise ValueError(f"{where}: there is no {name!r}; there are {', '.join(sorted(fields))}")
        try:
            if fields[name].type != FieldDescriptor.TYPE_MESSAGE:
                setattr(message, name, value)
                continue
            part = getattr(message, name)
            part.SetInParent()
            if isinstance(part, Duration):
                part.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=value))
            elif isinstance(part, Timestamp):
                if value.tzinfo is None:
                    raise ValueError("a time without a time zone")
                part.FromDatetime(value)
            else:
                _fill(part, value, f"{where}.{name}")
        except (TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"{where}.{name}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return value.ToTimedelta().total_seconds()
    if isinstance(value, Timestamp):
        return value.ToDatetime(timezone.utc)
    if isinstance(value, Message):
        return {field.name: _plain(part) for field, part in value.ListFields()}
    return value


def _state(number: int) -> JobState:
    try:
        return JobState(job_pb2.JobState.Name(number).removeprefix("JOB_STATE_"))
    except ValueError:
        # Of a newer engine.
        return JobState.UNKNOWN


def _time(message: Message, name: str) -> datetime | None:
    return getattr(message, name).ToDatetime(timezone.utc) if message.HasField(name) else None


def _known(message: Message, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _json(text: str) -> Any:
    return json.loads(text) if text else None
