"""What the arguments of a call become on the wire: query parameters, JSON, forms, the path of a source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode

import orjson

from freeloop.outbound.transport import Content

Value: TypeAlias = str | int | float | bool | None
Pairs: TypeAlias = Mapping[str, Value | Sequence[Value]]
"""Names and values; a sequence is a name that stands several times, None one without a value."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, section 5.6.2
_DIGITS: Final = re.compile(r"[0-9]+")
# A segment that leads upwards, or nowhere, in any spelling.
_DOTS: Final = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)


def locate(url: str, base: str) -> str:
    """Return the URL of a call: itself where it is absolute, else what it adds to a source's URL.

    Args:
        url: Absolute; or a path that begins with ``/``, a query that begins with ``?``, or nothing.
        base: The source's URL, whose own query stays.

    Raises:
        ValueError: It is none of these, or its path holds ``.`` or ``..`` as a segment.
    """
    if url and url[0] not in "/?":
        if "://" in url:
            return url
        raise ValueError("expected an absolute URL, or a path of the source that begins with /")
    place, _, query = base.partition("#")[0].partition("?")
    path, _, more = url.partition("#")[0].partition("?")
    # A value that a user gave, such as `../admin`, must not lead to another place of the upstream.
    if _DOTS.search(path):
        raise ValueError("expected a path of the source without the segments . and ..")
    queries = "&".join(filter(None, (query, more)))
    return f"{place.rstrip('/') if path else place}{path}{'?' if queries else ''}{queries}"


def add_params(url: str, params: Pairs) -> str:
    """Return a URL with parameters added to its query."""
    place, hash_sign, fragment = url.partition("#")
    added = _encode_pairs(params)
    if not added:
        return url
    joint = "?" if "?" not in place else "" if place[-1] in "?&" else "&"
    return f"{place}{joint}{added}{hash_sign}{fragment}"


def encode_content(
    headers: dict[str, str],
    content: Content | None,
    json: Any,  # noqa: ANN401 - JSON is any value
    data: Pairs | None,
) -> Content | None:
    """Return the body that goes out; its type is added to the headers where they name none.

    Raises:
        ValueError: There is more than one.
    """
    if json is None and data is None:
        return content
    if (content is not None) + (json is not None) + (data is not None) > 1:
        raise ValueError("expected one of content, json and data; a call has either of them, not both")
    if data is not None:
        kind, content = "application/x-www-form-urlencoded", _encode_pairs(data).encode()
    else:
        kind, content = "application/json", orjson.dumps(json)
    if not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = kind
    return content


def check_message(method: str, headers: Mapping[str, str], content: Content | None) -> None:
    """Refuse what would be another message on the wire than the one that was meant.

    The transport minds line breaks in values, and the length of a body in parts.

    Raises:
        ValueError: The method or a header's name is no token; or a header contradicts the body, so that
            upstream and client would disagree on where the next request begins.
    """
    if method == "CONNECT" or not _TOKEN.fullmatch(method):
        raise ValueError(f"expected a method, such as GET; got {method!r}")
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"expected a header's name; got {name!r}")
        if len(name) == len("content-length") and name.lower() == "content-length":
            _check_length(value, content)
        elif len(name) == len("transfer-encoding") and name.lower() == "transfer-encoding":
            raise ValueError("expected no Transfer-Encoding: how a body is sent is for the client to say")


def _check_length(value: str, content: Content | None) -> None:
    if not _DIGITS.fullmatch(value):
        raise ValueError(f"expected a Content-Length in digits, got {value!r}")
    length = len(content) if isinstance(content, bytes) else 0 if content is None else int(value)
    if int(value) != length:
        raise ValueError(
            f"expected a body of {value} bytes, as its Content-Length says, got {length}. Leave the header "
            "out, or mend it."
        )


def _encode_pairs(pairs: Pairs) -> str:
    flat: list[tuple[str, str]] = []
    for name, value in pairs.items():
        several = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        flat += [(name, _write(each)) for each in several]
    return urlencode(flat)


def _write(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
