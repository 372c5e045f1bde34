import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tidegate.v1 import job_pb2 as _job_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReportResult(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPORT_RESULT_UNSPECIFIED: _ClassVar[ReportResult]
    REPORT_RESULT_OK: _ClassVar[ReportResult]
    REPORT_RESULT_LEASE_LOST: _ClassVar[ReportResult]
    REPORT_RESULT_CANCELLED: _ClassVar[ReportResult]
    REPORT_RESULT_REJECTED: _ClassVar[ReportResult]
REPORT_RESULT_UNSPECIFIED: ReportResult
REPORT_RESULT_OK: ReportResult
REPORT_RESULT_LEASE_LOST: ReportResult
REPORT_RESULT_CANCELLED: ReportResult
REPORT_RESULT_REJECTED: ReportResult

class WorkRequest(_message.Message):
    __slots__ = ("hello", "report", "ping", "leave", "reports")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    report: Report
    ping: Ping
    leave: Leave
    reports: Reports
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., reports: _Optional[_Union[Reports, _Mapping]] = ...) -> None: ...

class WorkResponse(_message.Message):
    __slots__ = ("welcome", "assignment", "ack", "cancel", "lease_lost", "drain", "pong", "acks")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    LEASE_LOST_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    assignment: Assignment
    ack: ReportAck
    cancel: CancelOrder
    lease_lost: LeaseLost
    drain: Drain
    pong: Pong
    acks: ReportAcks
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., assignment: _Optional[_Union[Assignment, _Mapping]] = ..., ack: _Optional[_Union[ReportAck, _Mapping]] = ..., cancel: _Optional[_Union[CancelOrder, _Mapping]] = ..., lease_lost: _Optional[_Union[LeaseLost, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., acks: _Optional[_Union[ReportAcks, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("name", "kinds", "capacity", "leases", "client", "batched_acks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    BATCHED_ACKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kinds: _containers.RepeatedCompositeFieldContainer[WorkerKind]
    capacity: int
    leases: _containers.RepeatedCompositeFieldContainer[HeldLease]
    client: str
    batched_acks: bool
    def __init__(self, name: _Optional[str] = ..., kinds: _Optional[_Iterable[_Union[WorkerKind, _Mapping]]] = ..., capacity: _Optional[int] = ..., leases: _Optional[_Iterable[_Union[HeldLease, _Mapping]]] = ..., client: _Optional[str] = ..., batched_acks: _Optional[bool] = ...) -> None: ...

class WorkerKind(_message.Message):
    __slots__ = ("kind", "description", "input_schema_json", "example_json")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    INPUT_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_JSON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    description: str
    input_schema_json: str
    example_json: str
    def __init__(self, kind: _Optional[str] = ..., description: _Optional[str] = ..., input_schema_json: _Optional[str] = ..., example_json: _Optional[str] = ...) -> None: ...

class HeldLease(_message.Message):
    __slots__ = ("job_id", "lease_token")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    lease_token: str
    def __init__(self, job_id: _Optional[str] = ..., lease_token: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("resumed", "lost", "lease", "ping_interval", "max_checkpoint_bytes", "max_custom_bytes", "max_result_bytes", "max_batched_reports")
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    PING_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    MAX_CHECKPOINT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CUSTOM_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RESULT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCHED_REPORTS_FIELD_NUMBER: _ClassVar[int]
    resumed: _containers.RepeatedCompositeFieldContainer[ResumedLease]
    lost: _containers.RepeatedCompositeFieldContainer[LeaseLost]
    lease: _duration_pb2.Duration
    ping_interval: _duration_pb2.Duration
    max_checkpoint_bytes: int
    max_custom_bytes: int
    max_result_bytes: int
    max_batched_reports: int
    def __init__(self, resumed: _Optional[_Iterable[_Union[ResumedLease, _Mapping]]] = ..., lost: _Optional[_Iterable[_Union[LeaseLost, _Mapping]]] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ping_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_checkpoint_bytes: _Optional[int] = ..., max_custom_bytes: _Optional[int] = ..., max_result_bytes: _Optional[int] = ..., max_batched_reports: _Optional[int] = ...) -> None: ...

class ResumedLease(_message.Message):
    __slots__ = ("job_id", "last_report", "cancel_requested")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_REPORT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    last_report: int
    cancel_requested: _job_pb2.CancelRequested
    def __init__(self, job_id: _Optional[str] = ..., last_report: _Optional[int] = ..., cancel_requested: _Optional[_Union[_job_pb2.CancelRequested, _Mapping]] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("job_id", "kind", "attempt", "lease_token", "input_json", "checkpoint", "tenant", "owner", "deadline", "progress_deadline", "traceparent", "scheduled_for")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    SCHEDULED_FOR_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    kind: str
    attempt: int
    lease_token: str
    input_json: str
    checkpoint: _job_pb2.Checkpoint
    tenant: str
    owner: str
    deadline: _timestamp_pb2.Timestamp
    progress_deadline: _duration_pb2.Duration
    traceparent: str
    scheduled_for: _timestamp_pb2.Timestamp
    def __init__(self, job_id: _Optional[str] = ..., kind: _Optional[str] = ..., attempt: _Optional[int] = ..., lease_token: _Optional[str] = ..., input_json: _Optional[str] = ..., checkpoint: _Optional[_Union[_job_pb2.Checkpoint, _Mapping]] = ..., tenant: _Optional[str] = ..., owner: _Optional[str] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., progress_deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., traceparent: _Optional[str] = ..., scheduled_for: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("job_id", "lease_token", "number", "progress", "log", "checkpoint", "custom", "complete", "fail", "stopped", "released")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    FAIL_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    lease_token: str
    number: int
    progress: _job_pb2.Progress
    log: _job_pb2.Log
    checkpoint: _job_pb2.Checkpoint
    custom: _job_pb2.Custom
    complete: _job_pb2.Completed
    fail: _job_pb2.Failed
    stopped: Stopped
    released: Released
    def __init__(self, job_id: _Optional[str] = ..., lease_token: _Optional[str] = ..., number: _Optional[int] = ..., progress: _Optional[_Union[_job_pb2.Progress, _Mapping]] = ..., log: _Optional[_Union[_job_pb2.Log, _Mapping]] = ..., checkpoint: _Optional[_Union[_job_pb2.Checkpoint, _Mapping]] = ..., custom: _Optional[_Union[_job_pb2.Custom, _Mapping]] = ..., complete: _Optional[_Union[_job_pb2.Completed, _Mapping]] = ..., fail: _Optional[_Union[_job_pb2.Failed, _Mapping]] = ..., stopped: _Optional[_Union[Stopped, _Mapping]] = ..., released: _Optional[_Union[Released, _Mapping]] = ...) -> None: ...

class Reports(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    def __init__(self, reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ...) -> None: ...

class Stopped(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Released(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ReportAck(_message.Message):
    __slots__ = ("job_id", "number", "result", "seq", "deadline", "message", "lease_token")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    number: int
    result: ReportResult
    seq: int
    deadline: _timestamp_pb2.Timestamp
    message: str
    lease_token: str
    def __init__(self, job_id: _Optional[str] = ..., number: _Optional[int] = ..., result: _Optional[_Union[ReportResult, str]] = ..., seq: _Optional[int] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., message: _Optional[str] = ..., lease_token: _Optional[str] = ...) -> None: ...

class ReportAcks(_message.Message):
    __slots__ = ("acks",)
    ACKS_FIELD_NUMBER: _ClassVar[int]
    acks: _containers.RepeatedCompositeFieldContainer[ReportAck]
    def __init__(self, acks: _Optional[_Iterable[_Union[ReportAck, _Mapping]]] = ...) -> None: ...

class CancelOrder(_message.Message):
    __slots__ = ("job_id", "request", "lease_token")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    request: _job_pb2.CancelRequested
    lease_token: str
    def __init__(self, job_id: _Optional[str] = ..., request: _Optional[_Union[_job_pb2.CancelRequested, _Mapping]] = ..., lease_token: _Optional[str] = ...) -> None: ...

class LeaseLost(_message.Message):
    __slots__ = ("job_id", "lease_token", "reason")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    lease_token: str
    reason: str
    def __init__(self, job_id: _Optional[str] = ..., lease_token: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("deadline",)
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    deadline: _timestamp_pb2.Timestamp
    def __init__(self, deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ping(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Pong(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
