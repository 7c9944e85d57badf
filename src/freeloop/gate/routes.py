"""Which route a request is for, known before the app has routed it.

The app's own routes are read once, with their own regular expressions and in their own order, so the answer
is the one that the app will come to; static paths are found by one look into a dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, Mount, WebSocketRoute, compile_path

from freeloop.gate.declare import Declaration, read_declaration

R = TypeVar("R")
WEBSOCKET: Final = "WEBSOCKET"


class RouteTable(Generic[R]):
    """From method and path to what the gate keeps for the route.

    Routes for hosts and other kinds of routing that only the app itself understands are not in it.

    Args:
        routes: The app's routes; FastAPI's and Starlette's.
        make: Called once per path template with the template and what the route declares.
        prefix: Where they are mounted.
    """

    def __init__(
        self, routes: Iterable[BaseRoute], make: Callable[[str, Declaration], R], *, prefix: str = ""
    ) -> None:
        self._exact: dict[tuple[str, str], R] = {}
        # By their order; for any method: the app will answer 405.
        self._static: dict[str, tuple[int, R]] = {}
        self._groups: dict[str, list[_Entry[R]]] = {}
        self._depth = 0
        self._made: dict[tuple[str, Declaration], R] = {}
        self._make = make
        for order, context in enumerate(iter_route_contexts(list(routes))):
            self._add(context, prefix, order)

    def find(self, method: str, path: str) -> R | None:
        """Return what was made for the route, None where no route has the path.

        Args:
            method: In upper case; ``WEBSOCKET`` for a WebSocket.
            path: Without the app's root path.
        """
        found = self._exact.get((method, path))
        if found is not None:
            return found
        partial = None
        for entry in self._candidates(path):
            match = entry.regex.match(path)
            if match is None:
                continue
            if entry.mounted is not None:
                return entry.mounted.find(method, "/" + match["path"]) or entry.made
            if entry.methods is None or method in entry.methods:
                return entry.made
            partial = partial or (entry.order, entry.made)
        static = self._static.get(path)
        if static is not None and (partial is None or static[0] < partial[0]):
            partial = static
        return None if partial is None else partial[1]

    def _candidates(self, path: str) -> Iterable[_Entry[R]]:
        """Return the entries with parameters that share a static beginning with ``path``, in their order."""
        groups: list[list[_Entry[R]]] = []
        beginning = ""
        for part in path.split("/", self._depth + 1)[: self._depth + 1]:
            beginning = f"{beginning}/{part}" if part else beginning
            group = self._groups.get(beginning)
            if group is not None and (not groups or groups[-1] is not group):
                groups.append(group)
        if len(groups) == 1:
            return groups[0]
        return sorted((entry for group in groups for entry in group), key=lambda entry: entry.order)

    def _add(self, context: Any, prefix: str, order: int) -> None:  # noqa: ANN401 - FastAPI's RouteContext
        template = context.path
        if template is None:
            return
        if isinstance(context.original_route, Mount):
            self._add_mount(context, prefix, order)
            return
        methods = (
            frozenset({WEBSOCKET}) if isinstance(context.original_route, WebSocketRoute) else context.methods
        )
        made = self._get(prefix + template, read_declaration(context.endpoint))
        if "{" not in template:
            self._static.setdefault(template, (order, made))
            for method in methods or ():
                if self._is_free(method, template):
                    self._exact.setdefault((method, template), made)
            if methods:
                return
        self._insert(template, _Entry(order, compile_path(template)[0], methods, made))

    def _add_mount(self, context: Any, prefix: str, order: int) -> None:  # noqa: ANN401 - as above
        template = context.path
        made = self._get(f"{prefix}{template}/{{path}}", Declaration())
        routes = getattr(context.original_route, "routes", None)
        mounted = RouteTable(routes, self._make, prefix=prefix + template) if routes else None
        regex = compile_path(template + "/{path:path}")[0]
        self._insert(template + "/{path}", _Entry(order, regex, None, made, mounted))

    def _is_free(self, method: str, path: str) -> bool:
        """Whether no earlier route with parameters takes ``path`` already."""
        return not any(
            (entry.methods is None or method in entry.methods) and entry.regex.match(path)
            for group in self._groups.values()
            for entry in group
        )

    def _insert(self, template: str, entry: _Entry[R]) -> None:
        beginning = template.partition("{")[0].rpartition("/")[0]
        self._groups.setdefault(beginning, []).append(entry)
        self._depth = max(self._depth, beginning.count("/"))

    def _get(self, template: str, declaration: Declaration) -> R:
        key = (template, declaration)
        if key not in self._made:
            self._made[key] = self._make(template, declaration)
        return self._made[key]


class _Entry(Generic[R]):
    """A route whose path has parameters, or a mount."""

    __slots__ = ("made", "methods", "mounted", "order", "regex")

    def __init__(
        self,
        order: int,
        regex: re.Pattern[str],
        methods: frozenset[str] | set[str] | None,
        made: R,
        mounted: RouteTable[R] | None = None,
    ) -> None:
        self.order = order
        self.regex = regex
        self.methods = methods
        self.made = made
        self.mounted = mounted
