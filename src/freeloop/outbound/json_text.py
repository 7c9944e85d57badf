"""JSON text that is passed on as it came: checked, never rewritten.

No parser at hand checks without building values, and each decoder has an opinion on what it builds: orjson
turns integers beyond 64 bits into floats and refuses ``1e999``, lone surrogates and deep nesting, all of
which RFC 8259 allows. So orjson, the fast one, may only say yes; the standard library says no.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

import anyio.to_thread
import orjson

# orjson holds the GIL and the loop for 3 to 20 ms a MiB. From here on the check runs in a thread and with
# the standard library's parser, whose callbacks let other threads in: slower, but the loop goes on.
_LARGE: Final = 2**18
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


async def check_json(content: bytes) -> bytes:
    """Return ``content``, without a byte order mark, when it is one JSON value in UTF-8.

    Raises:
        ValueError: It is not; the message says why.
    """
    # RFC 8259, section 8.1: a reader may ignore the mark; within a larger document it must not stand.
    content = content.removeprefix(_BYTE_ORDER_MARK)
    if len(content) >= _LARGE:
        # Nobody needs the verdict any more when the call is cancelled.
        await anyio.to_thread.run_sync(_check_fully, content, abandon_on_cancel=True)
        return content
    try:
        orjson.loads(content)
    except orjson.JSONDecodeError:
        _check_fully(content)
    return content


def decode_json(content: bytes) -> Any:  # noqa: ANN401 - JSON is any value
    """Return the value of a JSON text in UTF-8.

    Raises:
        ValueError: It is not JSON, or holds an integer of more than 4,300 digits.
    """
    return _load(content.removeprefix(_BYTE_ORDER_MARK))


def _check_fully(content: bytes) -> None:
    # The hooks spare building values that nobody reads, among them integers of any length.
    _load(content, object_pairs_hook=_forget, parse_int=_forget, parse_float=_forget)


def _load(content: bytes, **hooks: Any) -> Any:  # noqa: ANN401 - as decode_json
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant, **hooks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _forget(_: object) -> None:
    return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
