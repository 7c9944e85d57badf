"""The layers in their order, each source with those that it uses: what an app says in a ``Source``.

From the outside in, with the first column in front of all sources::

    Client          the total deadline: what is left of the scope, or the call's own, whichever ends first
    Redirects       each hop is a call of its own, within that time
    UrlGuard        for URLs that users supply, and those that upstreams redirect to elsewhere
    Stacks          from here on, each source has its own
      Cache         off unless asked for
      Coalesce      off unless asked for
      Retry         pays for what it repeats, out of the source's budget
      Hedge         off unless asked for; pays out of the same budget
      CircuitBreaker
      RateLimit     every attempt pays, and waits without holding a place
      Bulkhead      holds a place
      AttemptTimeout  its clock starts now
        Transport   one pool of connections for all

A layer that a source does not use is not there: it costs its calls nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from freeloop.outbound.attempt import AttemptTimeout
from freeloop.outbound.breaker import Breaker, CircuitBreaker
from freeloop.outbound.budget import RetryBudget
from freeloop.outbound.bulkhead import Bulkhead, Compartment
from freeloop.outbound.cache import Cache, Finishing
from freeloop.outbound.cache_policy import CachePolicy
from freeloop.outbound.coalesce import Coalesce
from freeloop.outbound.hedge import Hedge
from freeloop.outbound.rate import Rate, RateLimit
from freeloop.outbound.response import Response
from freeloop.outbound.retry import Retry, RetryPolicy
from freeloop.outbound.sources import Sources
from freeloop.outbound.transport import OutboundRequest, Transport
from freeloop.source import Source

NONE: Final = "(none)"
_MOST_NAMES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The layers of one source; None: one that it does not use.

    Attributes:
        first: The outermost of them, which takes the calls.
    """

    first: Transport
    cache: Cache | None
    coalesce: Coalesce | None
    retry: Retry | None
    hedge: Hedge | None
    breaker: CircuitBreaker | None
    rate: RateLimit | None
    bulkhead: Bulkhead | None
    attempt: AttemptTimeout


def compose(transport: Transport, source: Source, *, spawn: Callable[..., Finishing] | None = None) -> Stack:
    """Return the layers that a source uses, in front of a transport.

    Args:
        transport: What carries the attempts; closed with the layers.
        source: How the source is called.
        spawn: Starts what outlives a call, see :class:`freeloop.outbound.cache.Cache`.
    """
    cache = coalesce = retry = hedge = breaker = rate = bulkhead = None
    layer: Transport
    layer = attempt = AttemptTimeout(transport, source.attempt_timeout or math.inf)
    if (most := source.concurrency) is not None:
        layer = bulkhead = Bulkhead(layer, lambda _: Compartment(most=most, queue=source.queue))
    if (per_second := source.rate) is not None:
        layer = rate = RateLimit(layer, lambda _: Rate(per_second, burst=source.burst))
    if (share := source.breaker) is not None:
        layer = breaker = CircuitBreaker(layer, lambda _: Breaker(failures=share, slow=source.slow))
    budgets: Sources[RetryBudget] = Sources(lambda _: RetryBudget())
    if source.hedge:
        layer = hedge = Hedge(layer, budgets)
    if source.retries or source.hedge:  # also where nothing is repeated, it counts the calls for the budget
        layer = retry = Retry(layer, budgets, policy=RetryPolicy(attempts=1 + source.retries))
    if source.coalesce:
        layer = coalesce = Coalesce(layer)
    if source.cache is not None:
        policy = CachePolicy(
            stale_while_revalidate=source.stale_while_revalidate, stale_if_error=source.stale_if_error
        )
        layer = cache = Cache(layer, max_bytes=source.cache, spawn=spawn, policy=policy)
    return Stack(
        first=layer,
        cache=cache,
        coalesce=coalesce,
        retry=retry,
        hedge=hedge,
        breaker=breaker,
        rate=rate,
        bulkhead=bulkhead,
        attempt=attempt,
    )


class Stacks:
    """Sends each call through the layers of its source.

    A call with a name of which nothing is said gets layers of its own by the ``default``. Calls without one
    share theirs, in which each host has its own breaker, budget and places.

    Args:
        transport: What carries the attempts; closed with this.
        sources: How the sources are called, by name.
        default: How all others are.
        spawn: As of :func:`compose`.
    """

    def __init__(
        self,
        transport: Transport,
        sources: Mapping[str, Source] | None = None,
        *,
        default: Source | None = None,
        spawn: Callable[..., Finishing] | None = None,
    ) -> None:
        self._transport = transport
        self._default = default or Source()
        self._spawn = spawn
        self._rest = compose(transport, self._default, spawn=spawn)
        self._named = {
            name: compose(transport, source, spawn=spawn) for name, source in (sources or {}).items()
        }
        # A name may come from anywhere, so that those of which nothing is said are bounded.
        self._most = len(self._named) + _MOST_NAMES

    def send(self, request: OutboundRequest) -> Coroutine[Any, Any, Response]:
        """Send the request; the contract of :class:`freeloop.outbound.Transport`."""
        return self.of(request.source).first.send(request)

    def of(self, name: str | None) -> Stack:
        """Return the layers of a source."""
        if name is None:
            return self._rest
        stack = self._named.get(name)
        if stack is None:
            if len(self._named) >= self._most:
                return self._rest
            stack = self._named[name] = compose(self._transport, self._default, spawn=self._spawn)
        return stack

    def __iter__(self) -> Iterator[tuple[str, Stack]]:
        """Names and layers, as they are now; ``(none)`` are those of calls without one."""
        yield NONE, self._rest
        yield from tuple(self._named.items())

    async def close(self) -> None:
        """Forget stored answers and close the transport."""
        for _, stack in self:
            await stack.first.close()
