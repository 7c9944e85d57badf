"""How an external API is called, as plain values: what an app says of it, and ``FREELOOP_SOURCES`` may.

Any room may import it; it imports nothing of ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

_CACHE_BYTES: Final = 64 * 2**20
_MOST: Final = 10**15  # of a whole number: no float is as large as some of them
_SLOWEST: Final = 1e-9  # attempts a second: one in thirty years
_NOT_IN_URLS: Final = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True, slots=True)
class Source:
    """How one external API is called. Each default is what suits an API of which nothing is known.

    ::

        Freeloop(app, sources={"posts": Source("https://api.example.com/v1", timeout=5.0, coalesce=True)})

    What is left out, or None where that is allowed, is a layer that its calls do not pass.

    Args:
        url: Where it is, http or https; empty only in a description of several.
        timeout: Seconds for a whole call: waiting, retries and redirects included; None, the default: those
            of the client (``FREELOOP_FETCH_TIMEOUT``, 10 s).
        attempt_timeout: Seconds for one attempt of a call, once it has its turn; None, the default: what the
            call has left.
        retries: Attempts beyond the first where one fails, 0 or more; 2 by default. Only what is safe to
            repeat is, and at most 10 % of the calls are.
        hedge: Whether a second request goes out where an answer takes longer than 95 % of the answers do;
            by default not.
        breaker: The share of failed calls, over 0 and at most 1, at which it is not called for a while; 0.5
            by default; None: it always is.
        slow: Seconds beyond which the breaker takes an answer for slow; None, the default: none is.
        rate: Attempts a second, 1e-9 or more; None, the default: any number.
        burst: Attempts of those that may go at once after a pause, 1 or more; 1 by default.
        concurrency: Attempts at once, 1 or more; 100 by default; None: any number.
        queue: Calls that may wait for one of those places, 0 or more; 1000 by default.
        coalesce: Whether identical GETs at the same time are one call; by default not.
        cache: Bytes of memory for its answers, 1 or more, or True for 64 MiB; None, the default: none is
            kept.
        stale_while_revalidate: Seconds that an answer which does not say so itself may be used stale while
            the upstream is asked, where there is a cache; 0 by default.
        stale_if_error: The same where the upstream fails, or its breaker is open; 0 by default.

    Raises:
        ValueError: A value is none of these; the message names it and says what is expected.
    """

    url: str = field(default="", repr=False)  # it may hold credentials
    timeout: float | None = None
    attempt_timeout: float | None = None
    retries: int = 2
    hedge: bool = False
    breaker: float | None = 0.5
    slow: float | None = None
    rate: float | None = None
    burst: int = 1
    concurrency: int | None = 100
    queue: int = 1000
    coalesce: bool = False
    cache: int | None = None
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what a layer would have to, by the name of what is wrong."""
        if isinstance(self.cache, bool):
            object.__setattr__(self, "cache", _CACHE_BYTES if self.cache else None)
        for name, (holds, expected) in _RULES.items():
            value = getattr(self, name)
            if isinstance(value, int) and value > _MOST:
                raise ValueError(f"{name}: expected {_MOST} at most")
            if not holds(value):
                raise ValueError(f"{name}: expected {expected}; got {value!r}")
        if not _is_url(self.url):  # not shown: it may hold a password
            raise ValueError("url: expected an absolute http or https URL")


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    expected: str


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_url(url: object) -> bool:
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
        _ = parts.port  # read only now
    except ValueError:
        return False
    # What urlsplit() leaves out.
    clean = not _NOT_IN_URLS.search(url)
    return not url or (clean and parts.scheme in {"http", "https"} and bool(parts.hostname))


_SECONDS: Final = _Rule(
    lambda value: value is None or (_is_number(value) and value > 0), "seconds over 0, or None"
)
_GRACE: Final = _Rule(lambda value: _is_number(value) and value >= 0, "seconds, 0 or more")
_SWITCH: Final = _Rule(lambda value: isinstance(value, bool), "True or False")
_COUNT: Final = _Rule(lambda value: _is_whole(value) and value >= 0, "a whole number, 0 or more")
_RULES: Final = {
    "timeout": _SECONDS,
    "attempt_timeout": _SECONDS,
    "retries": _COUNT,
    "hedge": _SWITCH,
    "breaker": _Rule(
        lambda value: value is None or (_is_number(value) and 0 < value <= 1),
        "a share over 0 and at most 1, or None",
    ),
    "slow": _SECONDS,
    "rate": _Rule(
        lambda value: value is None or (_is_number(value) and value >= _SLOWEST),
        f"a number, {_SLOWEST:g} or more, or None",
    ),
    "burst": _Rule(lambda value: _is_whole(value) and value >= 1, "a whole number, 1 or more"),
    "concurrency": _Rule(
        lambda value: value is None or (_is_whole(value) and value >= 1), "a whole number, 1 or more, or None"
    ),
    "queue": _COUNT,
    "coalesce": _SWITCH,
    "cache": _Rule(
        lambda value: value is None or (_is_whole(value) and value >= 1), "bytes, 1 or more, True or None"
    ),
    "stale_while_revalidate": _GRACE,
    "stale_if_error": _GRACE,
}

OPTIONS: Final = tuple(each.name for each in fields(Source))
"""The names of what can be said of a source."""
