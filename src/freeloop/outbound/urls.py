"""URLs as they go out.

One parser for all who judge, resolve and call them: where two differ, one of them is fooled.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from yarl import URL

_PARTS: Final = re.compile(r"([^:/?#]+://[^/?#\\\s]+)((?:/[^?#]*)?)(\?[^#]*)?(?:#.*)?", re.DOTALL)
_EXPECTED: Final = "expected an absolute http or https URL, without control characters"
# What parsers drop, each in its own way.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]|^ | $")
# RFC 3986: what may stand in a path and a query.
_ENCODED: Final = re.compile(r"(?:[A-Za-z0-9!$&'()*+,./:;=?@_~-]|%[0-9A-Fa-f]{2})*")
_LONE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SAFE: Final = "!$%&'()*+,/:;=?@"


@lru_cache(maxsize=256)
def parse_url(url: str) -> URL:
    """Return where a call goes.

    Path and query go out as they are given, since a signature may stand for them: ``%20`` does not become
    ``+``, nor ``%7E`` a tilde. Only what no URL may hold is encoded. The fragment is left out.

    Raises:
        ValueError: It is not an absolute http or https URL.
    """
    parts = _PARTS.fullmatch(url)
    if parts is not None and not _CONTROL.search(url):
        origin, path, query = parts.groups()
        # What the libraries say of a URL that they cannot read shows parts of it.
        with suppress(ValueError):
            return URL(f"{_parse_origin(origin)}{_encode(path) or '/'}{_encode(query or '')}", encoded=True)
    raise ValueError(_EXPECTED)


def resolve_url(here: str, reference: str) -> URL:
    """Return where a reference leads that stands in the answer to a call.

    Args:
        here: The URL of the call.
        reference: Such as the value of ``Location``.

    Raises:
        ValueError: It is not, and does not lead to, an http or https URL.
    """
    named = URL(reference, encoded=True)  # parse_url encodes the whole
    # `https:///x` would be joined to our own host, and read by others as the host x.
    if _CONTROL.search(reference) or (named.scheme and not named.raw_host):
        raise ValueError(_EXPECTED)
    return parse_url(str(parse_url(here).join(named)))


@lru_cache(maxsize=256)
def _parse_origin(origin: str) -> str:
    parts = URL(origin)
    if parts.scheme not in {"http", "https"} or not parts.raw_host:
        raise ValueError(_EXPECTED)
    return f"{parts.scheme}://{parts.raw_authority}"


def _encode(text: str) -> str:
    if _ENCODED.fullmatch(text):
        return text
    return quote(_LONE_PERCENT.sub("%25", text), safe=_SAFE)
