"""The questions to one process, and what can be done in it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import multiprocessing
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import orjson

from freeloop.database import Database
from freeloop.errors import InspectionFailed
from freeloop.gate.admission import Admission
from freeloop.gate.exchange import Exchange
from freeloop.gate.middleware import Gate
from freeloop.insights.answers import (
    Answer,
    Block,
    BlocksAnswer,
    Borrowed,
    BreakerState,
    DatabaseAnswer,
    EndedRequest,
    HistoryAnswer,
    IdleRow,
    LiveScope,
    PoolState,
    RequestsAnswer,
    RouteLoad,
    Snapshot,
    StatementRow,
    UpstreamsAnswer,
    UpstreamState,
)
from freeloop.insights.looks import PATIENCE, SharedLook
from freeloop.insights.recorder import Ended, Gauges, Recorder
from freeloop.outbound import Stacks
from freeloop.outbound.layers import Stack
from freeloop.readings import list_pools
from freeloop.scope import Lease, Scope
from freeloop.tree import Tree
from freeloop.tree.model import Snapshot as TreeSnapshot
from freeloop.watch import Watch

logger = logging.getLogger("freeloop.console")

_MOST_LIVE: Final = 500
_LATELY: Final = 10  # samples
_BLOCKS_FOR: Final = 60.0  # seconds that a block is news


@dataclass(frozen=True, slots=True)
class Parts:
    """Where a process is read: each returns None, or nothing, while it is not there."""

    gate: Callable[[], Gate | None]
    scopes: Callable[[], Iterable[Scope]]
    database: Callable[[], Database | None]
    stacks: Callable[[], Stacks | None]
    watch: Callable[[], Watch | None]
    tree: Callable[[], Tree | None]
    tasks_waiting: Callable[[], int | None]


class Insights:
    """Answers for this process. All but :meth:`ask` and what ``tree`` has is to be called on the loop.

    Args:
        parts: Where it is read.

    Attributes:
        process: Its number.
        group: The same for all processes that serve one app together.
        recorder: What was.
        tree: What all tasks wait for, as of the last look; from any thread.
    """

    def __init__(self, parts: Parts) -> None:
        parent = multiprocessing.parent_process()
        self.process = os.getpid()
        self.group = self.process if parent is None else parent.pid
        self.recorder = Recorder(self._read_gauges)
        self.parts = parts
        self.tree = SharedLook(self._look)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hangs = False
        # What each route had refused at the end of each of the last samples, and its limit then.
        self._refusals: deque[dict[Admission, tuple[int, int | None]]] = deque(maxlen=_LATELY + 1)
        self._questions: dict[str, Callable[[], Answer]] = {
            "now": self.read_now,
            "history": self.read_history,
            "requests": self.read_requests,
            "blocks": self.read_blocks,
            "database": self.read_database,
            "upstreams": self.read_upstreams,
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record for the block, on the loop that runs in this thread."""
        self._loop = asyncio.get_running_loop()
        with self.recorder.recording():
            yield

    def answer(self, question: str) -> Answer:
        """Answer one of ``now``, ``history``, ``requests``, ``blocks``, ``database`` and ``upstreams``."""
        return self._questions[question]()

    def ask(self, question: Mapping[str, Any]) -> Iterator[bytes]:
        """Answer a question that came by the socket of :mod:`freeloop.inspection`, in its thread."""
        wanted = question.get("of")
        if wanted == "group":
            yield orjson.dumps({"group": self.group})
        elif wanted == "tree":
            yield from self.tree.get().lines()
        elif wanted == "rings":
            yield orjson.dumps({"rings": count_rings(self.tree.get())})
        elif wanted == "cancel":
            number, who = int(question["number"]), str(question.get("who", ""))
            yield orjson.dumps({"cancelled": self._on_loop(lambda: self.cancel(number, who=who), False)})
        elif wanted in self._questions:
            read = self._questions[str(wanted)]
            answer = self._on_loop(read, None)
            if answer is None:  # the loop hangs, so that what is read here does not change meanwhile
                answer = read()
                if isinstance(answer, Snapshot):
                    answer = replace(answer, hung=(self.process,))
            yield orjson.dumps({"answer": answer})
        else:
            raise ValueError(f"expected one of {', '.join(self._questions)}; got {wanted!r}")

    def _look(self) -> TreeSnapshot:
        tree = self.parts.tree()
        if tree is None:
            raise InspectionFailed("the app is not open: nobody looks at its tasks")
        try:
            return tree.look(patience=PATIENCE)
        except Exception as error:
            # A look reads what asyncio keeps to itself, and may meet what it does not know.
            logger.exception("what the tasks wait for could not be read")
            raise InspectionFailed(f"{type(error).__name__}: {error}") from error

    def _on_loop(self, read: Callable[[], Any], otherwise: Any) -> Any:  # noqa: ANN401 - what it reads
        # Who waits a second each for a loop that is known to hang keeps the next ones waiting for too long.
        if self._loop is None or self._hangs:
            return otherwise
        result: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            wanted = result.set_running_or_notify_cancel()
            self._hangs = False
            if not wanted:
                return
            try:
                result.set_result(read())
            except Exception as error:  # noqa: BLE001 - told to whoever asked
                result.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(run)
            return result.result(PATIENCE)
        except TimeoutError:
            self._hangs = True  # before it is cancelled: whoever runs that knows better
            if not result.cancel():
                self._hangs = False
            return otherwise
        except RuntimeError:  # the loop has closed
            return otherwise

    def read_now(self) -> Snapshot:
        """Return what it does now."""
        now = time.time()
        lately = tuple(self.recorder.samples)[-_LATELY:]
        since = lately[0].at - 1 if lately else now
        failed = Counter(
            ended.record.route or ended.record.path
            for ended in tuple(self.recorder.failed)
            if ended.at >= since and ended.record.status >= 500
        )
        return Snapshot(
            samples=lately,
            routes=tuple(self._read_routes()),
            pools=self.read_database().pools,
            breakers=tuple(
                breaker
                for source in self.read_upstreams().sources
                for breaker in source.breakers
                if breaker.state != "closed"
            ),
            blocks=tuple(
                block
                for block in self.read_blocks().blocks
                if block.goes_on or block.last >= now - _BLOCKS_FOR
            ),
            failed=tuple(failed.most_common(3)),
        )

    def read_history(self) -> HistoryAnswer:
        """Return the last 15 minutes."""
        return HistoryAnswer(tuple(self.recorder.samples))

    def read_requests(self) -> RequestsAnswer:
        """Return what runs, and what did not go well lately."""
        scopes = sorted(self.parts.scopes(), key=lambda scope: scope.started)
        return RequestsAnswer(
            live=tuple(self._read_scope(scope) for scope in scopes[:_MOST_LIVE]),
            running=len(scopes),
            failed=tuple(self._read_ended(each) for each in reversed(tuple(self.recorder.failed))),
            slow=tuple(self._read_ended(each) for each in reversed(tuple(self.recorder.slow))),
        )

    def read_blocks(self) -> BlocksAnswer:
        """Return what blocked the loop."""
        watch = self.parts.watch()
        if watch is None:
            return BlocksAnswer(watched=False)
        return BlocksAnswer(
            blocks=tuple(
                Block(
                    self.process,
                    found.place,
                    found.route,
                    found.cause,
                    found.advice,
                    found.times,
                    found.seconds,
                    found.longest,
                    found.request_id,
                    found.first,
                    found.last,
                    found.goes_on,
                    tuple(map(str, found.stack)),
                )
                for found in watch.findings()
            ),
            dropped=watch.dropped,
        )

    def read_database(self) -> DatabaseAnswer:
        """Return what the pools do."""
        database = self.parts.database()
        if database is None:
            return DatabaseAnswer()
        times = database.statement_times
        return DatabaseAnswer(
            pools=tuple(
                PoolState(
                    self.process,
                    pool.name,
                    pool.size,
                    pool.in_use,
                    pool.idle,
                    pool.waiting,
                    tuple(_borrowed(lease, route) for lease, route in tuple(pool.holders.items())),
                    pool.acquire_times.count,
                    pool.acquire_times.seconds,
                )
                for pool in list_pools(database)
            ),
            statements=tuple(
                StatementRow(self.process, name, runs, times.seconds.get(name, 0.0))
                for name, runs in times.counts.copy().items()
            ),
            held_idle=tuple(IdleRow(self.process, *found) for found in database.held_idle.found),
        )

    def read_upstreams(self) -> UpstreamsAnswer:
        """Return what the sources do."""
        return UpstreamsAnswer(
            tuple(self._read_source(name, stack) for name, stack in self.parts.stacks() or ())
        )

    def cancel(self, number: int, *, who: str = "") -> bool:
        """Cancel a scope by its number; return whether it was there. The log has who did."""
        for scope in self.parts.scopes():
            if id(scope) == number:
                logger.warning(
                    "cancelled by hand",
                    extra={"request_id": scope.id, "route": scope.route, "kind": scope.kind, "by": who},
                )
                scope.cancel("request")
                return True
        return False

    def _read_gauges(self) -> Gauges:
        gate, database, watch = self.parts.gate(), self.parts.database(), self.parts.watch()
        admissions = [each.admission for each in (gate.bulkheads if gate else ()) if each.admission]
        limits = [each.limit for each in admissions if each.limit is not None]
        self._refusals.append({each: (each.shed, each.limit) for each in admissions})
        return Gauges(
            shed=sum(each.shed for each in admissions),
            running=gate.running + gate.websockets if gate else 0,
            limit=sum(limits) if limits else None,
            lag=0.0 if watch is None else watch.take_worst_lag(),
            lent=database.in_use if database else 0,
            pool=database.size if database else 0,
            pool_waiting=database.waiting if database else 0,
            breakers=sum(
                stack.breaker.suspended for _, stack in self.parts.stacks() or () if stack.breaker is not None
            ),
            tasks=self.parts.tasks_waiting(),
        )

    def _read_routes(self) -> Iterator[RouteLoad]:
        gate = self.parts.gate()
        for bulkhead in gate.bulkheads if gate else ():
            admission = bulkhead.admission
            if admission is not None and (admission.running or admission.waiting or admission.shed):
                seconds = [second.get(admission, (0, None)) for second in self._refusals] or [(0, None)]
                lately = seconds[-1][0] - seconds[0][0]
                yield RouteLoad(
                    bulkhead.template,
                    admission.running,
                    admission.waiting,
                    admission.limit,
                    admission.shed,
                    lately,
                    full=lately > 0 and all(limit is None for _, limit in seconds),
                )

    def _read_scope(self, scope: Scope) -> LiveScope:
        return LiveScope(
            self.process,
            id(scope),
            scope.id,
            scope.kind,
            scope.route,
            time.monotonic() - scope.started,
            scope.remaining(),
            scope.cause,
            isinstance(scope, Exchange) and scope.streaming,
            scope.times(),
            len(scope.children),
            tuple(_borrowed(lease, scope.route) for lease in scope.leases),
        )

    def _read_ended(self, ended: Ended) -> EndedRequest:
        record = ended.record
        return EndedRequest(
            self.process,
            ended.at,
            record.request_id,
            record.method,
            record.path,
            record.route,
            record.status,
            record.duration,
            record.cause,
            dict(record.times),
        )

    def _read_source(self, name: str, stack: Stack) -> UpstreamState:
        now = time.monotonic()
        breakers = []
        for upstream, breaker in islice(stack.breaker.breakers, 100) if stack.breaker is not None else ():
            breakers.append(
                BreakerState(name, upstream, breaker.state, breaker.seconds_until(now), *breaker.totals)
            )
        usual = [
            breaker.usual for _, breaker in (stack.breaker.breakers if stack.breaker is not None else ())
        ]
        waiting = [layer.waiting for layer in (stack.rate, stack.bulkhead) if layer is not None]
        refusing = (stack.breaker, stack.rate, stack.bulkhead)
        return UpstreamState(
            self.process,
            name,
            stack.attempt.attempts,
            max((each for each in usual if each), default=None),
            stack.bulkhead.running if stack.bulkhead is not None else None,
            sum(waiting) if waiting else None,
            sum(layer.refused for layer in refusing if layer is not None),
            stack.retry.retries if stack.retry is not None else None,
            stack.hedge.hedges if stack.hedge is not None else None,
            stack.coalesce.joined if stack.coalesce is not None else None,
            stack.cache.hits + stack.cache.stale + stack.cache.validated if stack.cache is not None else None,
            stack.cache.misses if stack.cache is not None else None,
            tuple(breakers),
        )


def count_rings(tree: TreeSnapshot) -> tuple[tuple[int, int], ...]:
    """Return for each deadlock how many tasks are in it, and how many wait behind it."""
    return tuple((len(ring.tasks), len(ring.behind)) for ring in tree.deadlocks)


def _borrowed(lease: Lease, route: str) -> Borrowed:
    now = time.monotonic()
    idle = lease.idle_since
    return Borrowed(
        lease.kind, lease.name, route, now - lease.since, lease.place, None if idle is None else now - idle
    )
