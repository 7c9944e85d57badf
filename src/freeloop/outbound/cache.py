"""Answer from memory where the upstream allows it, as :mod:`freeloop.outbound.cache_policy` reads it.

Off unless asked for: that an answer may be old is for those to accept who call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from freeloop.errors import OutboundError, UpstreamNotCalled, UpstreamTimeout, UpstreamUnreachable, UrlRefused
from freeloop.outbound.cache_policy import (
    UNCOUNTED,
    CachePolicy,
    Entry,
    Wish,
    confirms,
    is_lasting,
    make_conditional,
    read_wish,
)
from freeloop.outbound.cache_shelf import Shelf, Writes
from freeloop.outbound.identity import SAFE, Identity, identify, target_of
from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest, Transport
from freeloop.outbound.urls import parse_url, resolve_url
from freeloop.scope import borrow, spend


class Finishing(Protocol):
    """A task, as far as the cache minds: it tells when it has ended."""

    def add_done_callback(self, function: Callable[[Any], object], /) -> None:
        """Call a function at the end, however it comes."""
        ...


class Cache:
    """A layer that answers GETs from memory: RFC 9111 and RFC 5861.

    A stale answer within its ``stale-while-revalidate`` goes out at once, and one call asks the upstream
    meanwhile: in a scope of its own, once for each answer, and at most ``refreshes`` at a time; beyond it the
    stale answer goes out all the same, and a later call asks. Where the upstream fails, or is not called
    because its breaker is open, an answer within its ``stale-if-error`` goes out.

    A write forgets the answers of its URL, also where its own answer was lost, and what was asked before it
    ended is not stored after it. Credentials of stored calls lie in memory as long as their answers.

    Args:
        transport: What the calls go to that are not answered from memory.
        max_bytes: Bytes that the answers may take together, with all that belongs to them; 1 or more. One
            answer takes a tenth of it at most.
        spawn: Starts an async function that outlives the call, such as ``kit.spawn``; None: nothing does,
            and whoever comes upon a stale answer waits for the upstream.
        policy: What is stored, and when it answers; the default: as the upstream says.
        refreshes: Calls in the background at a time, 1 or more.
        refresh_timeout: Seconds that one may take, over 0.
        clock: Seconds that only ever grow.
        wall: Seconds since the epoch, to compare with ``Date``.

    Attributes:
        hits: Calls answered from memory while fresh.
        stale: Calls answered from memory while stale.
        validated: Calls answered from memory once the upstream had confirmed the answer.
        misses: Answers that came from the upstream in full; those that it kept from the background too.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        max_bytes: int,
        spawn: Callable[..., Finishing] | None = None,
        policy: CachePolicy | None = None,
        refreshes: int = 10,
        refresh_timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if refreshes < 1 or not refresh_timeout > 0:
            raise ValueError(
                f"expected refreshes of 1 or more and a refresh_timeout over 0; got {refreshes} and "
                f"{refresh_timeout}"
            )
        self.shelf: Shelf[Entry] = Shelf(max_bytes)
        self.hits = self.stale = self.validated = self.misses = 0
        self._transport = transport
        self._spawn = spawn
        self._policy = policy or CachePolicy()
        self._refreshes = refreshes
        self._refresh_timeout = refresh_timeout
        self._clock = clock
        self._wall = wall
        self._refreshing: set[Identity] = set()
        self._writes = Writes()

    async def send(self, request: OutboundRequest) -> Response:
        """Answer the request; the contract of :class:`freeloop.outbound.Transport`.

        With ``Cache-Control: only-if-cached``, an answer with status 504 says that nothing is stored.
        """
        if request.method != "GET" or request.content is not None or request.stream:
            return await self._pass(request)
        wish = read_wish(request.headers)
        if wish.bypass:
            return await self._transport.send(request)
        key = identify(request, UNCOUNTED)
        entry = self.shelf.get(key)
        if entry is not None and len(entry.response.content) > request.max_body:
            entry = None  # to fail like any answer that is too large, unless it has become smaller
        now = self._clock()
        decision = self._policy.decide(entry, wish, now)
        if decision == "refuse":
            return Response(status_code=504, headers={}, content=b"", url=request.url, request=request)
        if entry is None or decision == "validate" or (decision != "serve" and self._spawn is None):
            return await self._ask(request, key, entry, wish)
        if decision == "serve-and-validate":
            self._refresh(request, key, entry)
        if now < entry.fresh_until:
            self.hits += 1
        else:
            self.stale += 1
        return entry.answer(request, now)

    async def close(self) -> None:
        """Forget all answers and close the transport."""
        self.shelf.clear()
        await self._transport.close()

    async def _pass(self, request: OutboundRequest) -> Response:
        if request.method in SAFE:
            return await self._transport.send(request)
        changed = {target_of(request.url)}
        try:
            response = await self._transport.send(request)
            changed = set() if response.status_code >= 400 else changed | _others_changed(response)
        except OutboundError as error:
            if _surely_unsent(error):
                changed = set()
            raise
        finally:
            # Whatever came of it, it may have been carried out.
            now = self._clock()
            for target in changed:
                self._writes.note(target, now)
                self.shelf.remove_target(target)
        return response

    async def _ask(
        self, request: OutboundRequest, key: Identity, entry: Entry | None, wish: Wish
    ) -> Response:
        """Answer a call from the upstream, or from what is stored where it confirms that, or fails."""
        asked = self._clock()
        try:
            response = await self._fetch(request, key, entry)
        except OutboundError as error:
            standing_in = self._stand_in(request, key, entry, wish, asked=asked, status=error.status)
            if standing_in is None:
                raise
            return standing_in
        return self._stand_in(request, key, entry, wish, asked=asked, status=response.status_code) or response

    def _stand_in(
        self,
        request: OutboundRequest,
        key: Identity,
        entry: Entry | None,
        wish: Wish,
        *,
        asked: float,
        status: int,
    ) -> Response | None:
        now = self._clock()
        if (
            entry is None
            or not self._policy.may_stand_in(entry, status, wish, now)
            or self._writes.since(key[0], asked)
        ):
            return None
        self.stale += 1
        return entry.answer(request, now)

    async def _fetch(self, request: OutboundRequest, key: Identity, entry: Entry | None) -> Response:
        """Ask the upstream, and note what it says."""
        asked = self._clock()
        sent = request if entry is None else make_conditional(request, entry)
        response = await self._transport.send(sent)
        now, wall = self._clock(), self._wall()
        if entry is not None and sent is not request:
            if response.status_code == 304:
                if not confirms(response, entry):
                    return await self._fetch_anew(request, key, asked)
                entry = self._policy.freshen(entry, response, asked=asked, now=now, wall=wall)
                self._note(key, entry if entry.useful else None, asked)
                self.validated += 1
                return entry.answer(request, now)
            response = replace(response, request=request)
        self.misses += 1
        kept = self._policy.keep(response, asked=asked, now=now, wall=wall)
        if kept is not None or is_lasting(response.status_code):
            self._note(key, kept, asked)
        return response

    async def _fetch_anew(self, request: OutboundRequest, key: Identity, asked: float) -> Response:
        self.shelf.remove(key)
        remaining = request.timeout - (self._clock() - asked)
        if remaining <= 0:
            raise UpstreamTimeout(
                f"{request.name} did not answer within {request.timeout:g} s: it confirmed an answer that "
                "nobody asked about",
                source=request.source,
                seconds=request.timeout,
            )
        return await self._fetch(replace(request, timeout=remaining), key, None)

    def _note(self, key: Identity, entry: Entry | None, asked: float) -> None:
        """Store an answer in place of the one before, or forget that; what a write has overtaken goes too."""
        if entry is None or self._writes.since(key[0], asked):
            self.shelf.remove(key)
        else:
            self.shelf.put(key, entry)

    def _refresh(self, request: OutboundRequest, key: Identity, entry: Entry) -> None:
        if self._spawn is None or key in self._refreshing or len(self._refreshing) >= self._refreshes:
            return
        background = replace(request, timeout=self._refresh_timeout)
        task = self._spawn(self._fetch_in_background, background, key, entry)
        self._refreshing.add(key)
        task.add_done_callback(lambda _: self._refreshing.discard(key))

    async def _fetch_in_background(self, request: OutboundRequest, key: Identity, entry: Entry) -> None:
        # Where it fails nobody lacks an answer; whoever comes next asks again.
        with borrow("upstream", request.upstream), spend("upstream"), suppress(OutboundError):
            await self._fetch(request, key, entry)


def _surely_unsent(error: OutboundError) -> bool:
    match error:
        case UpstreamNotCalled() | UrlRefused():
            return True
        case UpstreamUnreachable():
            return not error.sent
        case _:
            return False


def _others_changed(response: Response) -> set[str]:
    """Return what a write says that it changed beside its own URL (RFC 9111, section 4.4)."""
    changed = set()
    for name in ("Location", "Content-Location"):
        if (place := response.headers.get(name)) is not None:
            with suppress(ValueError):
                there = resolve_url(response.url, place)
                if there.origin() == parse_url(response.url).origin():
                    changed.add(target_of(str(there)))
    return changed
