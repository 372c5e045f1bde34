"""What stands between a worker and an engine, or in an engine's place: a proxy that cuts, a door that is shut, a web page."""

import asyncio
import socket
import struct
import time


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST instead of FIN."""
    if not writer.transport.is_closing():
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class _Listener:
    """Counts the connections to a free port and hands each to `serve`."""

    def __init__(self):
        # When each connection came, by the monotonic clock.
        self.connects: list[float] = []
        self.port = 0

    async def start(self, port: int = 0) -> "_Listener":
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _accept(self, reader, writer) -> None:
        self.connects.append(time.monotonic())
        try:
            await self.serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def close(self) -> None:
        self.server.close()


class Shut(_Listener):
    """Resets every connection: an engine that is away, and counts who knocks."""

    async def serve(self, reader, writer) -> None:
        _reset(writer)


class WebPage(_Listener):
    """A web server where an engine should be: answers anything with a page, over HTTP/1.1."""

    PAGE = b"<!doctype html><html><head><title>Welcome</title></head><body>It works!</body></html>"

    async def serve(self, reader, writer) -> None:
        await reader.read(64)
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nContent-Length: {len(self.PAGE)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + self.PAGE)
        await writer.drain()


class Proxy(_Listener):
    """Passes bytes on to an engine until it is told to cut."""

    def __init__(self, engine):
        super().__init__()
        self.engine = engine
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader, writer) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.engine.port)
        ends = {writer, upstream_writer}
        self.writers |= ends
        pumps = [asyncio.ensure_future(_pump(a, b)) for a, b in ((reader, upstream_writer), (upstream_reader, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.writers -= ends
            for pump in pumps:
                pump.cancel()
            for end in ends:
                end.close()

    def cut(self) -> None:
        """Resets every connection, on both sides. New ones are served."""
        for writer in list(self.writers):
            _reset(writer)

    async def close(self) -> None:
        await super().close()
        self.cut()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
