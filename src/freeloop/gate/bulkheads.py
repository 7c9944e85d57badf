"""All routes of an app, each with its bulkhead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from starlette.types import ASGIApp
from starlette.types import Scope as ASGIScope

from freeloop.gate.admission import Admission
from freeloop.gate.bulkhead import Bulkhead
from freeloop.gate.declare import Declaration
from freeloop.gate.limit import AdaptiveLimit
from freeloop.gate.routes import WEBSOCKET, RouteTable

# What apps call the paths that probes ask; shedding them would have a loaded service restarted.
_PROBES: Final = frozenset(
    {"/livez", "/readyz", "/healthz", "/health", "/live", "/ready", "/health/live", "/health/ready", "/ping"}
    | {"/metrics"}
)


class Bulkheads:
    """Finds the bulkhead of a request.

    The app's routes are read when the first request comes, since they may be added until then. An app that
    shows no routes, not Starlette's kind, has one bulkhead for all.

    Args:
        app: The application, perhaps with middleware around it.
        max_concurrency: Requests of one route that run at once at most.

    Attributes:
        others: The bulkhead of requests that match no route.
    """

    def __init__(self, app: ASGIApp, *, max_concurrency: int) -> None:
        self._app = app
        self._max_concurrency = max_concurrency
        self._all: list[Bulkhead] = []
        self.others = self._make("", Declaration())
        self._table: RouteTable[Bulkhead] | None = None

    def find(self, asgi: ASGIScope) -> Bulkhead:
        """Return the bulkhead of the route that a request is for."""
        table = self._table
        if table is None:
            table = self._table = RouteTable(find_routes(self._app), self._make)
        return table.find(asgi.get("method", WEBSOCKET), path_within(asgi)) or self.others

    def __iter__(self) -> Iterator[Bulkhead]:
        return iter(self._all)

    def _make(self, template: str, declaration: Declaration) -> Bulkhead:
        priority = "critical" if template in _PROBES else declaration.priority
        admission = (
            None
            if priority == "critical"
            else Admission(AdaptiveLimit(priority=priority), ceiling=self._max_concurrency)
        )
        bulkhead = Bulkhead(template, declaration, admission)
        self._all.append(bulkhead)
        return bulkhead


def path_within(asgi: ASGIScope) -> str:
    """Return the path of a request as the app's routes have it, without the root path."""
    path: str = asgi["path"]
    root: str | None = asgi.get("root_path")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in {"/", ""}:
        return path[len(root) :]
    return path


def find_routes(app: Any) -> list[Any]:  # noqa: ANN401 - any ASGI app
    """Return the routes of an app, also of one behind middleware."""
    while app is not None:
        routes = getattr(app, "routes", None)
        if routes is not None:
            return list(routes)
        app = getattr(app, "app", None)
    return []
