"""RFC 9111, HTTP Caching, and RFC 5861, stale answers, as a pure policy for the cache of one service.

Not hishel's state machine (2.0.0, which is maintained): its decision about a hit alone takes 24 µs, since it
parses the stored headers each time; it reads the system's clock itself; it knows neither the ``Age`` of an
answer nor RFC 5861. Here an answer is read once, when it is stored, and a hit compares two numbers.

The cache is private in the RFC's words: one service is its only user, ``private`` answers are stored, and
``s-maxage`` and ``proxy-revalidate`` are for others. But one service calls on behalf of many, so an answer is
only for calls with equal headers (:mod:`freeloop.outbound.identity`): with the same ``Authorization``, and
with whatever ``Vary`` may name. Stricter than the RFC:

* An answer with ``Set-Cookie`` is not stored, as in nginx and Varnish: it was for one.
* Nothing is fresh unless the upstream says for how long. The RFC's heuristic, a share of the time since
  ``Last-Modified``, would answer with data that nobody allowed to be old.
* Errors are not stored but 404, 405, 410 and 451: those of a moment must not last longer than it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from multidict import CIMultiDict, CIMultiDictProxy

from freeloop.outbound.dates import read_date
from freeloop.outbound.identity import OF_ONE_CALL
from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest

Decision: TypeAlias = Literal["serve", "serve-and-validate", "validate", "refuse"]

_STORABLE: Final = frozenset({200, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 451})
_FAILURES: Final = frozenset({500, 502, 503, 504})  # RFC 5861, section 4
_DIRECTIVE: Final = re.compile(r'([^\s,=;"]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,;"]*)))?')
_CONDITIONS: Final = frozenset(
    {"range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"}
)
# What a call says to caches is no part of what it asks for.
UNCOUNTED: Final = OF_ONE_CALL | {"cache-control"}
_OF_ONE_HOP: Final = OF_ONE_CALL | {"proxy-authenticate", "proxy-authentication-info", "proxy-authorization"}
# They describe the body that is stored, which a 304 does not bring (RFC 9111, section 3.2).
_OF_THE_BODY: Final = frozenset({"content-length", "content-encoding", "content-range", "content-type"})
_LONGEST: Final = 2**31  # RFC 9111, section 1.2.2
# A mapping, an entry and their places, beside the texts: as measured, rounded up.
_OVERHEAD: Final = 2500


@dataclass(frozen=True, slots=True)
class Wish:
    """What a call asks of caches.

    Attributes:
        bypass: Whether the cache has no part in it.
        validate: Whether no answer will do that the upstream has not just confirmed.
        stored_only: Whether the upstream must not be asked.
        max_age: Seconds; the oldest answer that will do.
        min_fresh: Seconds that the answer must stay fresh.
        max_stale: Seconds that an answer may be stale.
        stale_if_error: As ``max_stale``, where the upstream fails.
    """

    bypass: bool = False
    validate: bool = False
    stored_only: bool = False
    max_age: float = math.inf
    min_fresh: float = 0.0
    max_stale: float = 0.0
    stale_if_error: float = 0.0


_NO_WISH: Final = Wish()
_BYPASS: Final = Wish(bypass=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An answer, with all that a hit needs; times in the seconds of the cache's clock.

    Attributes:
        response: The answer; its ``request`` is the one that it first answered.
        headers: Its headers, without those of one hop.
        born: When its age was 0.
        fresh_until: Until when it may be used; minus infinity: never without asking.
        revalidate_until: Until when it may be used while the upstream is asked.
        error_until: Until when it may be used where the upstream fails.
        strict: Whether it must not be used stale, whatever the call says.
        useful: Whether it may be stored, and would ever spare a call or a body.
        size: Bytes that it takes.
    """

    response: Response
    headers: CIMultiDictProxy[str]
    born: float
    fresh_until: float
    revalidate_until: float
    error_until: float
    strict: bool
    useful: bool
    size: int

    def answer(self, request: OutboundRequest, now: float) -> Response:
        """Return the answer to a call that took no body from the upstream."""
        headers = self.headers.copy()
        headers["Age"] = str(int(max(0.0, now - self.born)))
        stored = self.response
        return Response(
            status_code=stored.status_code,
            headers=CIMultiDictProxy(headers),
            content=stored.content,
            url=stored.url,
            request=request,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """What is stored, and when it answers.

    Attributes:
        stale_while_revalidate: Seconds that an answer which does not say so itself may be used stale while
            the upstream is asked; 0, the default: not at all.
        stale_if_error: Seconds that such an answer may be used stale where the upstream fails; 0, the
            default: not at all. Neither holds for an answer with ``no-cache`` or ``must-revalidate``.
    """

    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no number of seconds."""
        if not (0 <= self.stale_while_revalidate < math.inf and 0 <= self.stale_if_error < math.inf):
            raise ValueError(f"expected numbers of seconds, 0 or more; got {self}")

    def keep(self, response: Response, *, asked: float, now: float, wall: float) -> Entry | None:
        """Return what to store, or None where the answer must not be, or would be of no use.

        Args:
            response: The answer to a call without conditions of ours.
            asked: When the call was made.
            now: When its answer had come.
            wall: The same moment, in seconds since the epoch.
        """
        if response.status_code not in _STORABLE or "Set-Cookie" in response.headers:
            return None
        headers = CIMultiDict(response.headers)
        says = read_directives(headers)
        if "no-store" in says:
            return None
        entry = self._enter(response, headers, says, asked=asked, now=now, wall=wall)
        return entry if entry.useful else None

    def freshen(self, entry: Entry, response: Response, *, asked: float, now: float, wall: float) -> Entry:
        """Return the entry as a 304 that :func:`confirms` it renews it."""
        headers, told = entry.headers.copy(), CIMultiDict(response.headers)
        told.popall("Set-Cookie", None)  # for the one that asked
        for name in _OF_THE_BODY:
            told.popall(name, None)
        for name in {"Age", "Date", *told}:
            headers.popall(name, None)
        headers.extend(told)
        return self._enter(entry.response, headers, read_directives(headers), asked=asked, now=now, wall=wall)

    def decide(self, entry: Entry | None, wish: Wish, now: float) -> Decision:
        """Return what to do for a call that the cache has a part in."""
        if entry is not None and not wish.validate and now - entry.born <= wish.max_age:
            allowed = 0.0 if entry.strict else wish.max_stale
            if now + wish.min_fresh - entry.fresh_until < allowed:
                return "serve"
            if now < entry.revalidate_until and not wish.min_fresh and not wish.stored_only:
                return "serve-and-validate"
        return "refuse" if wish.stored_only else "validate"

    def may_stand_in(self, entry: Entry, status: int, wish: Wish, now: float) -> bool:
        """Return whether a stored answer may take the place of one with this status, or of such an error."""
        if status not in _FAILURES or wish.validate or now - entry.born > wish.max_age:
            return False
        return now < entry.error_until or (not entry.strict and now - entry.fresh_until < wish.stale_if_error)

    def _enter(
        self,
        response: Response,
        headers: CIMultiDict[str],
        says: Mapping[str, str],
        *,
        asked: float,
        now: float,
        wall: float,
    ) -> Entry:
        date = read_date(headers.get("Date", ""))
        # RFC 9111, section 4.2.3.
        apparent = 0.0 if date is None else max(0.0, wall - date)
        born = now - max(apparent, _read_seconds(headers.get("Age", "0")) + (now - asked))
        # `no-cache="Set-Cookie"` forbids less, and may be read as this.
        strict = "must-revalidate" in says or "no-cache" in says
        fresh_until = -math.inf if "no-cache" in says else born + _lifetime(headers, says, date, wall)
        revalidate_until = error_until = fresh_until
        if not strict:
            revalidate_until += _grace(says, "stale-while-revalidate", self.stale_while_revalidate)
            error_until += _grace(says, "stale-if-error", self.stale_if_error)
        usable = max(revalidate_until, error_until) > now or "ETag" in headers or "Last-Modified" in headers
        useful = usable and "no-store" not in says and not _varies_beyond(headers)
        for name in _of_one_hop(headers):
            headers.popall(name, None)
        kept = CIMultiDictProxy(headers)
        return Entry(
            response=replace(response, headers=kept),
            headers=kept,
            born=born,
            fresh_until=fresh_until,
            revalidate_until=revalidate_until,
            error_until=error_until,
            strict=strict,
            useful=useful,
            size=_weigh(response, kept),
        )


def read_wish(headers: Mapping[str, str]) -> Wish:
    """Return what a call with these headers asks of caches."""
    says = None
    for name in headers:
        lower = name.lower()
        if lower in _CONDITIONS:
            return _BYPASS  # the caller keeps answers itself, and gets what the upstream says to that
        if lower == "cache-control":
            says = _parse(headers[name])
    if not says:
        return _NO_WISH
    if "no-store" in says:
        return _BYPASS
    return Wish(
        validate="no-cache" in says,
        stored_only="only-if-cached" in says,
        max_age=_read_seconds(says["max-age"]) if "max-age" in says else math.inf,
        min_fresh=_read_seconds(says.get("min-fresh", "0")),
        max_stale=_read_seconds(says.get("max-stale", "0") or str(_LONGEST)),  # no value: however stale
        stale_if_error=_read_seconds(says.get("stale-if-error", "0")),
    )


def make_conditional(request: OutboundRequest, entry: Entry) -> OutboundRequest:
    """Return the call that asks whether a stored answer still holds; itself where there is no way to ask."""
    conditions = {}
    if (tag := entry.headers.get("ETag")) is not None:
        conditions["If-None-Match"] = tag
    if (modified := entry.headers.get("Last-Modified")) is not None:
        conditions["If-Modified-Since"] = modified
    return replace(request, headers={**request.headers, **conditions}) if conditions else request


def is_lasting(status: int) -> bool:
    """Return whether an answer that is not stored says that the stored one holds no more."""
    return status < 500 and status != 429


def confirms(response: Response, entry: Entry) -> bool:
    """Return whether a 304 is about a stored answer (RFC 9111, section 4.3.4)."""
    tag = response.headers.get("ETag")
    return tag is None or _opaque(tag) == _opaque(entry.headers.get("ETag", ""))


def read_directives(headers: CIMultiDict[str]) -> dict[str, str]:
    """Return the directives of ``Cache-Control``, in lower case, with their first values."""
    return _parse(", ".join(headers.getall("Cache-Control", ())))


def _parse(text: str) -> dict[str, str]:
    says: dict[str, str] = {}
    for name, quoted, plain in _DIRECTIVE.findall(text):
        says.setdefault(name.lower(), quoted or plain)
    return says


def _lifetime(headers: CIMultiDict[str], says: Mapping[str, str], date: float | None, wall: float) -> float:
    if "max-age" in says:
        return _read_seconds(says["max-age"])
    if "Expires" not in headers:
        return 0.0
    # `Expires: 0` is no date, and means the past.
    expires = read_date(headers["Expires"])
    return 0.0 if expires is None else max(0.0, expires - (wall if date is None else date))


def _grace(says: Mapping[str, str], name: str, default: float) -> float:
    return _read_seconds(says[name]) if name in says else default


def _varies_beyond(headers: CIMultiDict[str]) -> bool:
    """Whether an answer depends on what the identity of a call does not hold."""
    names = {name.strip().lower() for line in headers.getall("Vary", ()) for name in line.split(",")}
    return "*" in names or not names.isdisjoint(UNCOUNTED)


def _of_one_hop(headers: CIMultiDict[str]) -> set[str]:
    named = {name.strip().lower() for line in headers.getall("Connection", ()) for name in line.split(",")}
    return {name.lower() for name in headers} & (_OF_ONE_HOP | named)


def _weigh(response: Response, headers: Mapping[str, str]) -> int:
    request = response.request
    texts = sum(
        len(name) + len(value) for fields in (headers, request.headers) for name, value in fields.items()
    )
    # The request's texts are in the key, too.
    return len(response.content) + 2 * texts + 4 * len(request.url) + _OVERHEAD


def _opaque(tag: str) -> str:
    return tag.removeprefix("W/")


def _read_seconds(value: str) -> float:
    """Return a number of seconds; what is none counts as 0, by which an answer is stale."""
    return float(min(int(value[:20]), _LONGEST)) if value.isascii() and value.isdigit() else 0.0
