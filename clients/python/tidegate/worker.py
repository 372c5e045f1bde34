"""A worker: what it offers, to whom, and how it is run. The README shows one."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from tidegate import _engines, _limits
from tidegate._owner import LAST_TIME, Owner, logger
from tidegate._version import __version__
from tidegate.v1 import worker_service_pb2 as wire

Handler = TypeVar("Handler", bound=Callable[[Any, Any], Any])


@dataclass(frozen=True)
class Kind:
    """A kind of job and who runs it."""

    offer: wire.WorkerKind
    handler: Callable[[Any, Any], Any]
    #: Whether the handler is a plain function, to be run in a thread.
    threaded: bool


@dataclass(frozen=True)
class Plan:
    """What the owner needs to know."""

    engines: list[_engines.Engine]
    name: str
    capacity: int
    grace: float
    token: _engines.Token | None
    credentials: grpc.ChannelCredentials | None
    kinds: dict[str, Kind]
    client: str


class Worker:
    """Takes jobs from an engine and runs them.

    `engines` is an address such as `http://127.0.0.1:50051`, several with commas or in a list, or TIDEGATE_ENGINE when it is
    left out: the worker connects to one of them, chosen at random, and to the next one when that fails. `capacity` is how many
    jobs run at once. `grace` is how many seconds running jobs may go on after a shutdown began. `name` is for people. `token`
    is sent as a bearer token; it may be a function, which is asked at every connect for the one that is good now. `credentials`
    are for `https` addresses and default to the system's roots.

    Raises ValueError with what is wrong.
    """

    def __init__(
        self,
        engines: str | Iterable[str] | None = None,
        *,
        capacity: int = 4,
        grace: float = 5.0,
        name: str | None = None,
        token: _engines.Token | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError("a worker's capacity is at least 1")
        self._plan = Plan(
            engines=_engines.parse(engines),
            name=_limits.cut(name or socket.gethostname(), _limits.MAX_TEXT_BYTES),
            capacity=capacity,
            grace=max(0.0, grace),
            token=token or os.environ.get("TIDEGATE_TOKEN") or None,
            credentials=credentials,
            kinds={},
            client=f"python/{__version__}",
        )

    def kind(
        self,
        name: str,
        *,
        description: str = "",
        input_schema: Any = None,
        example: Any = None,
    ) -> Callable[[Handler], Handler]:
        """Offers a kind of job, run by the decorated `async def handler(ctx: Context, input)`.

        A plain function gets a SyncContext and runs in a thread of its own: right for work that computes or blocks.
        `description` is one sentence for callers, `input_schema` a JSON Schema, `example` an input. What the handler returns is
        the job's result and must be JSON.

        Raises ValueError when the name is malformed or taken.
        """
        if not _limits.is_name(name):
            raise ValueError(f"{name!r} cannot name a kind: lower-case letters, digits, '.', '_' and '-', at most 64")
        if name in self._plan.kinds:
            raise ValueError(f"the kind {name!r} is offered twice")
        offer = wire.WorkerKind(
            kind=name,
            description=description,
            input_schema_json="" if input_schema is None else _limits.to_json(input_schema),
            example_json="" if example is None else _limits.to_json(example),
        )

        def add(handler: Handler) -> Handler:
            # Of an object that can be called, its class says what calling it does.
            is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)
            self._plan.kinds[name] = Kind(offer, handler, threaded=not is_async)
            return handler

        return add

    async def serve(self, shutdown: asyncio.Event) -> None:
        """Works until `shutdown` is set and the jobs at hand are finished or given back.

        Running jobs may go on for the grace time; then they are told to stop and given back to the engine. An engine that
        cannot be reached is tried again for ever.
        """
        await self._serve(shutdown)

    def run(self) -> None:
        """Works until SIGTERM or SIGINT; a second one ends the process at once.

        Handlers that ignore that they are told to stop do not keep the process: it ends, with the exit code 0, without them.
        """
        asyncio.run(self._run())

    async def _serve(self, shutdown: asyncio.Event) -> int:
        if not self._plan.kinds:
            raise ValueError("a worker needs at least one kind of job")
        return await Owner(self._plan).run(shutdown)

    async def _run(self) -> None:
        shutdown, loop = asyncio.Event(), asyncio.get_running_loop()

        def stop() -> None:
            shutdown.set()
            for number in signals:
                loop.remove_signal_handler(number)

        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, stop)
        stubborn = await self._serve(shutdown)
        # What handlers began with asyncio.to_thread cannot be stopped either, and Python would wait for it.
        threads = asyncio.ensure_future(loop.shutdown_default_executor())
        await asyncio.wait([threads], timeout=LAST_TIME)
        if stubborn or not threads.done():
            logger.warning("%d handlers, and maybe threads of theirs, do not stop; the process ends without them", stubborn)
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(0)
