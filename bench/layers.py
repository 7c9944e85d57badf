"""What the layers of outbound calls take where they have nothing to do: CPU time beyond the transport's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from freeloop.outbound import OutboundRequest, Redirects, Response, Source, Stacks, UrlGuard
from freeloop.outbound.transport import Transport

_URL = "http://upstream.example/posts"
_BATCH, _BATCHES = 1_000, 60
# Every layer that lets a call pass. A cache and a shared call answer in its place, so they are never idle.
SOURCES: Mapping[str, Source] = {
    "by default": Source(_URL),
    "all": Source(_URL, hedge=True, rate=1e6, burst=10**6, attempt_timeout=10.0),
}


class _Nowhere:
    """A transport that answers at once."""

    async def send(self, request: OutboundRequest) -> Response:
        return Response(status_code=200, headers={}, content=b"", url=request.url, request=request)

    async def close(self) -> None:
        """Have nothing to close."""


def measure_layers() -> dict[str, float]:
    """Return the microseconds of CPU a call, by the name of what is on: the best of many batches in turn."""
    return asyncio.run(_measure())


async def _measure() -> dict[str, float]:
    transport = _Nowhere()
    exempt = dict.fromkeys(SOURCES, _URL)
    layers = Redirects(UrlGuard(Stacks(transport, SOURCES), exempt=exempt))
    ways: dict[str, Transport] = {"": transport, **dict.fromkeys(SOURCES, layers)}
    best = dict.fromkeys(ways, 1.0)
    for _ in range(_BATCHES):
        for name, way in ways.items():
            request = OutboundRequest(method="GET", url=_URL, timeout=10.0, max_body=1_000, source=name)
            started = time.process_time()
            for _ in range(_BATCH):
                await way.send(request)
            best[name] = min(best[name], time.process_time() - started)
    return {name: (best[name] - best[""]) / _BATCH * 1e6 for name in SOURCES}
