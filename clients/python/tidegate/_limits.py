"""Limits and names that the engine checks too, so that a refusal comes before a send. Pure; see `proto/limits.rs`."""

from __future__ import annotations

import json
import re
from typing import Any

#: The largest job input, in bytes of JSON.
MAX_INPUT_BYTES = 256 * 1024
#: The largest checkpoint unless the engine says otherwise, in bytes.
MAX_CHECKPOINT_BYTES = 64 * 1024
#: The largest custom event unless the engine says otherwise, in bytes of JSON.
MAX_CUSTOM_BYTES = 64 * 1024
#: The largest result unless the engine says otherwise, in bytes of JSON.
MAX_RESULT_BYTES = 256 * 1024
#: The longest log line, in bytes; longer ones are cut.
MAX_LOG_BYTES = 16 * 1024
#: The longest message, reason, step name or source, in bytes; longer ones are cut.
MAX_TEXT_BYTES = 1024
#: The longest kind or event name, in bytes.
MAX_NAME_BYTES = 64
#: The largest gRPC message, in bytes, in either direction.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
#: What stands at the end of a text that was cut.
CUT_MARK = " …[cut]"

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_RESERVED = frozenset(
    "state progress log checkpoint complete failed cancelled connected gap goodbye error open message retry close".split()
)


def is_name(name: str) -> bool:
    """Whether `name` may name a kind of job."""
    return _NAME.fullmatch(name) is not None


def is_event_name(name: str) -> bool:
    """Whether `name` may name a custom event: none of Tidegate's own names, none that EventSource dispatches itself."""
    return is_name(name) and name not in _RESERVED


def cut(text: str, limit: int) -> str:
    """Shortens `text` to at most `limit` bytes of UTF-8 on a character boundary, marking the cut.

    What cannot be written as UTF-8 (half a surrogate pair) becomes `?`.
    """
    data = text.encode("utf-8", "replace")
    if len(data) > limit:
        keep = max(0, limit - len(CUT_MARK.encode()))
        return data[:keep].decode("utf-8", "ignore") + CUT_MARK
    return data.decode("utf-8")


def to_json(value: Any) -> str:
    """`value` as a JSON text (RFC 8259).

    Raises ValueError when there is none: not a JSON type, NaN, a cycle, half a surrogate pair.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    return text


def too_large(what: str, size: int, limit: int) -> str | None:
    """Says that `what` is too large, if it is."""
    return f"{what} has {size} bytes; the engine takes {limit}" if size > limit else None
