"""The pools of an app, and how the sync code of FastAPI and Starlette comes to run in them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import starlette.concurrency
from starlette.exceptions import HTTPException

from freeloop.errors import ThreadsBusy
from freeloop.scope import Scope, current_scope
from freeloop.threads.pool import ThreadPool

logger = logging.getLogger("freeloop.threads")

# Few are enough for what is asked every few seconds, by a handful of probes, and answers at once; a larger
# pool would let a health check that hangs take threads for ever in vain.
_CRITICAL_SIZE: Final = 4


class RoutesBusy(ThreadsBusy, HTTPException):
    """No thread came free for a ``def`` route or dependency; 503 also in an app without our handlers."""

    headers: Any = None  # HTTPException sets it, which a property would forbid

    def __init__(self, busy: ThreadsBusy) -> None:
        ThreadsBusy.__init__(self, busy.detail, retry_after=busy.retry_after)
        HTTPException.__init__(self, busy.status, busy.detail, dict(busy.headers))


@dataclass(frozen=True, slots=True)
class Threads:
    """The pools of one app.

    Attributes:
        routes: For ``def`` routes and dependencies.
        critical: For those of routes with the priority ``critical``, such as health checks.
        calls: For what the app itself sends to a thread.
    """

    routes: ThreadPool
    critical: ThreadPool
    calls: ThreadPool

    def __iter__(self) -> Iterator[ThreadPool]:
        return iter((self.routes, self.critical, self.calls))


def open_threads(*, routes: int, calls: int) -> Threads:
    """Return the pools of an app; to be called where the loop runs.

    Args:
        routes: ``def`` routes and dependencies that run at once.
        calls: Calls of ``run_sync`` that run at once.
    """
    return Threads(
        ThreadPool("routes", size=routes, setting="FREELOOP_ROUTE_THREADS"),
        ThreadPool("critical", size=_CRITICAL_SIZE),
        ThreadPool("run_sync", size=calls, setting="FREELOOP_THREADS"),
    )


@contextmanager
def adopt_sync_routes(threads: Threads, runs: Callable[[Scope], bool]) -> Iterator[None]:
    """Run the ``def`` routes and dependencies of an app in its pools, within the block.

    The framework's own pool is one for all: slow routes use it up for health checks, and where a caller is
    cancelled it lends the place of a thread that still runs. FastAPI and Starlette both come to
    ``starlette.concurrency``, which looks ``anyio.to_thread.run_sync`` up at each call: that name is replaced
    there, once for all apps of the process, for as long as one is open. Code outside of a scope goes the
    usual way. Where a later version of Starlette goes another way, a warning says so, and all of it does.

    Args:
        threads: The pools of the app.
        runs: Whether a scope is one of the app's.
    """
    app = _App(threads, runs, asyncio.get_running_loop())
    with _changing:
        _apps.append(app)
        if len(_apps) == 1:
            _replace()
    try:
        yield
    finally:
        with _changing:
            _apps.remove(app)
            if not _apps:
                _restore()


@dataclass(frozen=True, slots=True, eq=False)
class _App:
    threads: Threads
    runs: Callable[[Scope], bool]
    loop: asyncio.AbstractEventLoop


# What is replaced belongs to the process, and so does who has asked for it.
_apps: Final[list[_App]] = []
_changing: Final = threading.Lock()  # apps may run in loops of several threads


def _find_threads(scope: Scope) -> Threads | None:
    """Return the pools that sync code of a scope runs in; None: no app of this loop is open."""
    loop = asyncio.get_running_loop()
    here = [app for app in _apps if app.loop is loop]
    # What is left of a scope that has ended is nobody's; where there is one app, it is that one's.
    return next((app.threads for app in here if app.runs(scope)), here[-1].threads if here else None)


class _Anyio:
    """The module ``anyio`` with another ``to_thread.run_sync``."""

    def __init__(self, module: Any) -> None:  # noqa: ANN401 - a module
        self.module = module
        self.to_thread = self

    async def run_sync(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401 - anyio's
        if getattr(function, "func", None) is _probe:
            return _probe
        scope = current_scope()
        threads = None if scope is None or options else _find_threads(scope)
        if scope is None or threads is None:
            return await self.module.to_thread.run_sync(function, *args, **options)
        pool = threads.critical if scope.critical else threads.routes
        try:
            return await pool.run(function, *args)
        except ThreadsBusy as error:
            raise RoutesBusy(error) from None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as above
        return getattr(self.module, name)


def _replace() -> None:
    module: Any = starlette.concurrency
    before = getattr(module, "anyio", None)
    if before is not None:
        module.anyio = _Anyio(before)
    if not _is_reached():
        logger.warning(
            "sync routes run in the framework's own threads: starlette.concurrency no longer calls "
            "anyio.to_thread.run_sync. FREELOOP_ROUTE_THREADS has no effect; use a version of Starlette that "
            "this version of Freeloop knows."
        )


def _restore() -> None:
    module: Any = starlette.concurrency
    found = getattr(module, "anyio", None)
    if isinstance(found, _Anyio):  # otherwise somebody else has replaced ours, which passes all on now
        module.anyio = found.module


def _is_reached() -> bool:
    """Whether a call of the framework comes to us: tried with one that is answered without a thread."""
    try:
        call: Any = starlette.concurrency.run_in_threadpool(_probe)
        try:
            call.send(None)
        finally:
            call.close()
    except StopIteration as end:
        return end.value is _probe
    except Exception:  # noqa: BLE001 - of a version that we do not know: any of its names may have gone
        return False
    return False


def _probe() -> None:
    """Stand for a function that is to run in a thread."""
