"""A caller: submits jobs, steers them, and follows their logs across lost connections."""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc

from tidegate import _engines, _limits, types
from tidegate.errors import CallFailed, InvalidRequest, Unavailable, from_status
from tidegate.types import Event, Job, JobPage, JobState, KindOffer
from tidegate.v1 import job_service_pb2 as wire
from tidegate.v1 import job_service_pb2_grpc as service

#: How long one try of a call may take while the time for the whole call is not up, in seconds.
_TRY = 10.0
#: Statuses with which a stream may break although the job is fine; what else there is lasts.
_PASSING = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    )
)


class Client:
    """Calls an engine; use it with `async with`, or call `close`.

    `engines` is an address such as `http://127.0.0.1:50051`, several with commas or in a list, or TIDEGATE_ENGINE when it is
    left out: one of them is chosen at random, and the next one when that fails. `timeout` is how many seconds a call may take,
    tries at other engines included. `subject` and `tenant` say on whose behalf the calls are made; without them, every job may
    be seen. `token` is sent as a bearer token; it may be a function, which is asked at every call for the one that is good now.
    `credentials` are for `https` addresses and default to the system's roots.

    Every call raises a `CallFailed`: `NotFound`, `InvalidRequest`, `WrongState`, `Conflict`, `LimitReached`, `Denied`,
    `Unavailable`. Raises ValueError for a malformed address.
    """

    def __init__(
        self,
        engines: str | Iterable[str] | None = None,
        *,
        timeout: float = 30.0,
        subject: str | None = None,
        tenant: str = "default",
        token: _engines.Token | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._engines = _engines.parse(engines)
        self._at = random.randrange(len(self._engines))
        self._timeout = timeout
        self._caller = None if subject is None else wire.Caller(tenant=tenant, subject=subject)
        self._token = token or os.environ.get("TIDEGATE_TOKEN") or None
        self._credentials = credentials
        self._channels: dict[int, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections; streams that are open end with an error."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    async def submit(
        self,
        kind: str,
        input: Any = None,
        options: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submits a job and returns it once it is stored.

        `input` is JSON of at most 256 KiB, `{}` when left out. `options` go by the names of `JobOptions` in the contract, such
        as `{"max_attempts": 3, "delay": 60}`: durations are seconds or `timedelta`, times are `datetime`. The same key with the
        same request yields the same job for 24 h; without one, a key of the call's own makes its tries one job.
        """
        try:
            text = "" if input is None else _limits.to_json(input)
        except ValueError as error:
            raise InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, f"input: {error}") from None
        if why := _limits.too_large("the input", len(text.encode()), _limits.MAX_INPUT_BYTES):
            raise InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, f"input: {why}")
        try:
            chosen = types.options(options or {})
        except ValueError as error:
            raise InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        request = wire.SubmitJobRequest(
            caller=self._caller,
            kind=kind,
            input_json=text,
            options=chosen,
            idempotency_key=idempotency_key or f"python-{uuid.uuid4()}",
        )
        return types.job((await self._call("SubmitJob", request)).job)

    async def get(self, job_id: str) -> Job:
        """One job."""
        return types.job((await self._call("GetJob", wire.GetJobRequest(caller=self._caller, job_id=job_id))).job)

    async def list(
        self,
        *,
        states: Iterable[JobState | str] = (),
        kind: str = "",
        page_size: int = 50,
        page: str = "",
    ) -> JobPage:
        """A page of at most `page_size` jobs (1 to 200), newest first; `page` is the `next_page` of the page before."""
        request = wire.ListJobsRequest(
            caller=self._caller,
            page_size=page_size,
            page_token=page,
            states=[f"JOB_STATE_{JobState(state).value}" for state in states],
            kind=kind,
        )
        answer = await self._call("ListJobs", request)
        return JobPage([types.job(job) for job in answer.jobs], answer.next_page_token)

    async def cancel(self, job_id: str, reason: str = "") -> Job:
        """Asks for a job's cancellation: a waiting job is cancelled at once, a running one within its deadline."""
        request = wire.CancelJobRequest(caller=self._caller, job_id=job_id, reason=reason)
        return types.job((await self._call("CancelJob", request)).job)

    async def retry(self, job_id: str) -> Job:
        """Queues a failed or cancelled job again; its log and numbering go on."""
        request = wire.RetryJobRequest(caller=self._caller, job_id=job_id)
        return types.job((await self._call("RetryJob", request, again=False)).job)

    async def delete(self, job_id: str) -> None:
        """Removes a finished job with its log."""
        await self._call("DeleteJob", wire.DeleteJobRequest(caller=self._caller, job_id=job_id), again=False)

    async def kinds(self) -> Sequence[KindOffer]:
        """The kinds of job that workers have offered, and whether one offers them now."""
        return [types.kind_offer(kind) for kind in (await self._call("ListKinds", wire.ListKindsRequest())).kinds]

    async def watch(self, job_id: str, cursor: str | None = None, *, patience: float = 60.0) -> AsyncGenerator[Event, None]:
        """Follows a job's log to its end: what is stored after `cursor`, then live.

        Each event comes once and in order. A lost connection is resumed by itself; only when that fails for `patience` seconds
        does the error come out. Events that cannot be had any more are announced by an event whose `what` is a `Gap`.
        """
        backoff = _engines.Backoff()
        position = cursor or ""
        alone_since: float | None = None
        while True:
            began = time.monotonic()
            token = _engines.current(self._token)
            try:
                request = wire.WatchJobRequest(caller=self._caller, job_id=job_id, cursor=position)
                call = self._stub().WatchJob(request, metadata=_engines.metadata(token))
                epoch = ""
                try:
                    async for message in call:
                        alone_since = None
                        what = message.WhichOneof("message")
                        if what == "opened":
                            epoch, position = message.opened.job.epoch, message.opened.cursor
                            continue
                        elif what == "event":
                            event = types.event(message.event, epoch)
                        elif what == "gap":
                            event = types.gap(message.gap)
                            epoch = event.cursor.partition("-")[2]
                        else:
                            continue
                        position = event.cursor
                        yield event
                finally:
                    call.cancel()
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED and _engines.current(self._token) != token:
                    continue  # it has ended meanwhile, and there is another one
                if error.code() not in _PASSING:
                    raise from_status(error) from None
                now = time.monotonic()
                alone_since = now if alone_since is None else alone_since
                if now - alone_since >= patience:
                    raise from_status(error) from None
            self._next_engine()
            await asyncio.sleep(backoff.pause(time.monotonic() - began, random.random()))

    async def wait(self, job_id: str) -> Job:
        """Waits for a job's end and returns it."""
        async for _ in self.watch(job_id):
            pass
        return await self.get(job_id)

    async def _call(self, method: str, request: Any, again: bool = True) -> Any:
        """Makes a call; `again` says whether a second try is harmless when the first one's answer is lost."""
        deadline = time.monotonic() + self._timeout
        backoff = _engines.Backoff()
        while True:
            left = deadline - time.monotonic()
            try:
                call = getattr(self._stub(), method)
                return await call(request, timeout=min(left, _TRY) if again else left, metadata=_engines.metadata(self._token))
            except grpc.aio.AioRpcError as error:
                failure: CallFailed = from_status(error)
            pause = backoff.pause(0, random.random())
            if not again or not isinstance(failure, Unavailable) or time.monotonic() + pause >= deadline:
                raise failure
            self._next_engine()
            await asyncio.sleep(pause)

    def _stub(self) -> Any:
        at = self._at % len(self._engines)
        if at not in self._channels:
            self._channels[at] = self._engines[at].channel(self._credentials)
        return service.JobServiceStub(self._channels[at])

    def _next_engine(self) -> None:
        self._at += 1
