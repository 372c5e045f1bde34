"""Engines: their addresses, the channels to them, and the pause between two tries. Shared by workers and callers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc

from tidegate._limits import MAX_MESSAGE_BYTES

#: A bearer token or API key, or what gives the one that is good now.
Token = str | Callable[[], str]

#: Where an engine listens unless told otherwise.
DEFAULT = "http://127.0.0.1:50051"

_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The pause between tries is ours: a pool shared by the whole process would add its own, of up to two minutes.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
# A caller's channel is used for many calls: it is back soon when its engine is.
_RECONNECTING: Sequence[tuple[str, int]] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
# A worker's channel carries one stream. Even when it is closed, gRPC goes on connecting until the last reference to that
# stream is collected: with an hour's pause, it does not.
_ONCE: Sequence[tuple[str, int]] = (
    ("grpc.initial_reconnect_backoff_ms", 3_600_000),
    ("grpc.max_reconnect_backoff_ms", 3_600_000),
)


@dataclass(frozen=True)
class Engine:
    """An engine's address."""

    uri: str
    target: str
    secure: bool

    def channel(self, credentials: grpc.ChannelCredentials | None, *, once: bool = False) -> grpc.aio.Channel:
        """A new channel; it connects when it is first used, and again when it is used again, unless `once`."""
        options = (*_OPTIONS, *(_ONCE if once else _RECONNECTING))
        if self.secure:
            credentials = credentials or grpc.ssl_channel_credentials()
            return grpc.aio.secure_channel(self.target, credentials, options=options)
        return grpc.aio.insecure_channel(self.target, options=options)


def parse(engines: str | Iterable[str] | None) -> list[Engine]:
    """The engines named by a list, by a text with commas, or by TIDEGATE_ENGINE.

    Raises ValueError with everything that is wrong.
    """
    if engines is None:
        engines = os.environ.get("TIDEGATE_ENGINE") or DEFAULT
    texts = engines.split(",") if isinstance(engines, str) else list(engines)
    found, wrong = [], []
    for text in (text.strip() for text in texts):
        uri = text if "://" in text else f"http://{text}"
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query:
            wrong.append(f"{text!r} is no engine address; it looks like {DEFAULT}")
            continue
        port = port or (443 if parts.scheme == "https" else 80)
        host = f"[{host}]" if ":" in host else host
        found.append(Engine(uri, f"dns:///{host}:{port}", parts.scheme == "https"))
    if not texts:
        wrong.append("there must be at least one engine")
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def current(token: Token | None) -> str | None:
    """The token that is good now."""
    return token() if callable(token) else token


def metadata(token: Token | None) -> tuple[tuple[str, str], ...]:
    """What a call carries to prove who is calling."""
    text = current(token)
    return () if text is None else (("authorization", f"Bearer {text}"),)


def describe(error: grpc.aio.AioRpcError) -> str:
    """A status in words for a person."""
    return f"{error.code().name}: {error.details()}"


class Backoff:
    """The pause before the next try: doubled each time, jittered, and forgotten only after a healthy time."""

    #: The first pause, in seconds.
    FIRST = 0.2
    #: The longest pause, in seconds.
    LONGEST = 15.0
    #: How long a connection must have lasted to count as healthy, in seconds. A welcome alone does not: an engine that
    #: accepts and then drops everybody would otherwise be stormed.
    HEALTHY = 10.0

    def __init__(self) -> None:
        self._tries = 0

    def pause(self, lasted: float, jitter: float) -> float:
        """The pause in seconds after a connection that lasted `lasted` (0 if there was none).

        `jitter` is uniform in [0, 1); the pause lies between a half and the whole of the doubled time.
        """
        if lasted >= self.HEALTHY:
            self._tries = 0
        whole: float = min(self.FIRST * 2 ** min(self._tries, 16), self.LONGEST)
        self._tries += 1
        return whole * (0.5 + jitter / 2)
