"""Whose work it is that runs on the loop: never that of an innocent request.

The running task carries its scope in its context, and so do its child tasks and the threads that work for it.
Where there is no scope of ours, the frames of Starlette and FastAPI on the stack have the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any, NamedTuple

from freeloop.scope import Scope, find_work, scope_of
from freeloop.watch.place import name_module

_CALLERS = ("starlette", "fastapi", "uvicorn")


class Blamed(NamedTuple):
    """A unit of work.

    Attributes:
        route: The route's template, or the name of a background function.
        id: The request id; empty where there is no scope.
        kind: As of a scope.
        started: When it began, in seconds of :func:`time.monotonic`; 0: not known.
    """

    route: str
    id: str = ""
    kind: str = "http"
    started: float = 0.0


def blame_task(task: asyncio.Task[Any] | None, frames: Iterable[FrameType]) -> Blamed | None:
    """Return whose step of a task this is; None: nobody's.

    Args:
        task: The task that runs; None: a bare callback does.
        frames: What it runs, the innermost first.
    """
    if task is None:
        return None
    scope = scope_of(task)
    return _describe(scope) if scope is not None else _find_request(frames)


def blame_thread(ident: int) -> Blamed | None:
    """Return whom a thread works for; None: that is not known.

    Of the threads of our pools it is, also once what they ran has just ended.
    """
    work = find_work(ident)
    return None if work is None else Blamed(work.route, work.id, work.kind)


def _describe(scope: Scope) -> Blamed | None:
    # A task that outlives its request may serve all (a connection that was opened then): the request that has
    # ended cannot be the one to blame.
    return Blamed(scope.route, scope.id, scope.kind, scope.started) if not scope.is_over else None


def _find_request(frames: Iterable[FrameType]) -> Blamed | None:
    for frame in frames:
        if "scope" in frame.f_code.co_varnames and name_module(frame.f_code.co_filename).startswith(_CALLERS):
            request = frame.f_locals.get("scope")
            if isinstance(request, Mapping) and request.get("type") in {"http", "websocket"}:
                return Blamed(_name_route(request), kind=str(request["type"]))
    return None


def _name_route(request: Mapping[str, Any]) -> str:
    """Return the template of a request's route, with where it is mounted; its path where it has none yet."""
    route = request.get("route")
    # FastAPI keeps a route that came by include_router as it is, and its prefix in a context beside it.
    within = request.get("fastapi")
    context = within.get("effective_route_context") if isinstance(within, Mapping) else None
    if context is not None and getattr(context, "original_route", None) is route:
        route = context
    path = getattr(route, "path", None)
    if not isinstance(path, str):
        return str(request.get("path", ""))
    root = str(request.get("root_path", ""))
    return root.removeprefix(str(request.get("app_root_path", root))) + path
