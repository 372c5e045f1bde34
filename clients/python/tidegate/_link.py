"""One connection of a worker to an engine: dialled, greeted and welcomed. No state beyond the stream itself."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc

from tidegate import _engines
from tidegate.v1 import worker_service_pb2 as wire
from tidegate.v1 import worker_service_pb2_grpc as service

#: How long dialling, greeting and the welcome may take together, in seconds.
PATIENCE = 10.0


class LinkError(Exception):
    """Why there is no stream, or none any more."""


class Link:
    """A stream on which the engine has welcomed the worker."""

    def __init__(self, channel: grpc.aio.Channel, call: Any) -> None:
        self._channel = channel
        self._call = call
        self.welcome = wire.Welcome()

    async def write(self, message: wire.WorkRequest) -> None:
        """Sends a message; waits while the engine does not read. Not to be called twice at once."""
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise LinkError(_engines.describe(error)) from None
        except (asyncio.InvalidStateError, grpc.aio.UsageError):
            # The stream has ended; its status says why.
            raise LinkError(f"{(await self._call.code()).name}: {await self._call.details()}") from None

    async def read(self) -> wire.WorkResponse:
        """The next message."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise LinkError(_engines.describe(error)) from None
        if message is grpc.aio.EOF:
            raise LinkError("the engine closed the stream")
        return cast(wire.WorkResponse, message)

    async def close(self) -> None:
        """Ends the stream and the connection."""
        self._call.cancel()
        await self._channel.close()


async def open_link(
    engine: _engines.Engine,
    hello: wire.Hello,
    token: _engines.Token | None,
    credentials: grpc.ChannelCredentials | None,
) -> Link:
    """Connects, says `hello` and waits for the welcome. Raises LinkError."""
    channel = engine.channel(credentials, once=True)
    link = Link(channel, service.WorkerServiceStub(channel).Work(metadata=_engines.metadata(token)))
    greeting = asyncio.create_task(_greet(link, hello))
    try:
        # Not asyncio.wait_for: before Python 3.12 that may swallow a cancellation which comes together with the welcome.
        await asyncio.wait([greeting], timeout=PATIENCE)
        if not greeting.done():
            raise LinkError(f"no welcome within {PATIENCE:.0f} s")
        greeting.result()
    except BaseException as error:
        greeting.cancel()
        await link.close()
        if isinstance(error, LinkError):
            # What answers may be a web server, or nothing at all: the reader should look at the address first.
            raise LinkError(f"no Tidegate engine answers by gRPC: {error}") from None
        raise
    return link


async def _greet(link: Link, hello: wire.Hello) -> None:
    await link.write(wire.WorkRequest(hello=hello))
    first = await link.read()
    if first.WhichOneof("message") != "welcome":
        raise LinkError("the first message was no welcome")
    link.welcome = first.welcome
