"""What the questions are answered with: frozen, and JSON without further words. All durations are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from freeloop.insights.recorder import Sample


@dataclass(frozen=True, slots=True)
class RouteLoad:
    """What happens on one route.

    Attributes:
        route: Its template; empty: requests that match none.
        running: Requests that hold a place.
        waiting: Those that wait for one.
        limit: How many may run at once; None: nothing is overloaded.
        shed: Requests that were refused so far.
        lately: Those of them that were refused within the last samples.
        full: Whether these were refused though it had no limit: by FREELOOP_MAX_CONCURRENCY.
    """

    route: str
    running: int
    waiting: int
    limit: int | None
    shed: int
    lately: int = 0
    full: bool = False


@dataclass(frozen=True, slots=True)
class Borrowed:
    """Something that is borrowed.

    Attributes:
        kind: As of a :class:`freeloop.scope.Lease`.
        name: Which one.
        route: For whom; empty: not known.
        seconds: For how long.
        place: The line that borrowed it; empty: not known.
        idle: For how long it has lain unused; None: it is used.
    """

    kind: str
    name: str
    route: str
    seconds: float
    place: str
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool of database connections.

    Attributes:
        process: Whose.
        name: Its name.
        size: Connections at most.
        lent: Those that are lent.
        idle: Those that are open and free.
        waiting: Callers that wait for one.
        leases: What is lent, the longest first.
        acquired: How often one was asked for since the start, in vain or not.
        acquire_seconds: How long all these have waited together.
    """

    process: int
    name: str
    size: int
    lent: int
    idle: int
    waiting: int
    leases: tuple[Borrowed, ...]
    acquired: int = 0
    acquire_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StatementRow:
    """A named statement: how often it was run, and how long all runs took."""

    process: int
    name: str
    runs: float
    seconds: float


@dataclass(frozen=True, slots=True)
class IdleRow:
    """A line of code that held a connection while it waited for something else."""

    process: int
    place: str
    route: str
    awaited: str
    transaction: str
    times: int
    longest: float


@dataclass(frozen=True, slots=True)
class DatabaseAnswer:
    """What the pools of a process do."""

    pools: tuple[PoolState, ...] = ()
    statements: tuple[StatementRow, ...] = ()
    held_idle: tuple[IdleRow, ...] = ()


@dataclass(frozen=True, slots=True)
class BreakerState:
    """The breaker of one upstream.

    Attributes:
        source: The source's name; ``(none)``: calls without one.
        upstream: The source, or the host.
        state: ``closed``, ``open`` or ``half-open``.
        seconds: Until the next probe may go.
        calls: Calls that it has counted lately.
        failed: Those of them that failed.
        slow: Those that were slow.
    """

    source: str
    upstream: str
    state: str
    seconds: float
    calls: int
    failed: int
    slow: int


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """The calls of one source; a layer that it does not use says None.

    Attributes:
        process: Whose.
        source: Its name.
        attempts: Requests that were sent.
        latency: How long an answer usually takes; None: not known.
        running: Requests under way.
        waiting: Calls that wait for their turn or for a place.
        refused: Calls that were not made.
        retries: Attempts after one that failed.
        hedges: Second requests since the first was late.
        shared: Calls that waited for another one's answer.
        hits: Calls answered from memory.
        misses: Those that were not.
        breakers: One for each upstream.
    """

    process: int
    source: str
    attempts: int
    latency: float | None
    running: int | None
    waiting: int | None
    refused: int
    retries: int | None
    hedges: int | None
    shared: int | None
    hits: int | None
    misses: int | None
    breakers: tuple[BreakerState, ...]

    @property
    def calls(self) -> int:
        """Calls that needed an answer from outside, their own or another one's."""
        again = (self.retries or 0) + (self.hedges or 0)
        return (self.shared or 0) + self.attempts - again


@dataclass(frozen=True, slots=True)
class UpstreamsAnswer:
    """The sources of a process."""

    sources: tuple[UpstreamState, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A line of code that blocks the loop; see :class:`freeloop.watch.Finding`."""

    process: int
    place: str
    route: str
    cause: str
    advice: str
    times: int
    seconds: float
    longest: float
    request_id: str
    first: float
    last: float
    goes_on: bool
    stack: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BlocksAnswer:
    """What blocked the loop of a process, what took most time first.

    Attributes:
        blocks: What was found.
        dropped: How many gave way to newer ones.
        watched: Whether anybody looks.
    """

    blocks: tuple[Block, ...] = ()
    dropped: int = 0
    watched: bool = True


@dataclass(frozen=True, slots=True)
class LiveScope:
    """A request, WebSocket, background execution or task that runs.

    Attributes:
        process: Where.
        number: By which it is asked for and cancelled; unique in its process while it lives.
        id: The request id.
        kind: ``http``, ``websocket``, ``background`` or ``task``.
        route: The route's template, or the function's or task's name.
        seconds: For how long.
        left: Until its deadline; None: it has none.
        cause: Why it was cancelled; None: it was not.
        streaming: Whether its answer streams.
        times: Where the time went, by class.
        children: Child tasks that run.
        leases: What it has borrowed.
    """

    process: int
    number: int
    id: str
    kind: str
    route: str
    seconds: float
    left: float | None
    cause: str | None
    streaming: bool
    times: dict[str, float]
    children: int
    leases: tuple[Borrowed, ...]


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """A request that was slow or failed."""

    process: int
    at: float
    request_id: str
    method: str
    path: str
    route: str
    status: int
    seconds: float
    cause: str
    times: dict[str, float]


@dataclass(frozen=True, slots=True)
class RequestsAnswer:
    """What runs, and what did not go well lately.

    Attributes:
        live: The scopes that have run for longest; at most 500.
        running: How many there are.
        failed: Requests that failed lately, the latest first.
        slow: Requests that were slow lately.
    """

    live: tuple[LiveScope, ...] = ()
    running: int = 0
    failed: tuple[EndedRequest, ...] = ()
    slow: tuple[EndedRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A process as it is now, or several as one.

    Attributes:
        samples: The last ones, the oldest first.
        routes: What happens on each.
        pools: The database's.
        breakers: Those that are not closed.
        blocks: What blocked the loop in the last minute, what took most time first.
        failed: Requests that failed within the last ten samples, as route and count.
        hung: Processes whose loop does not answer.
        silent: Processes that do not answer at all.
        deadlocks: Pairs of how many tasks wait for each other, and how many more for them.
        unread: The error because of which it is not known what the tasks wait for; empty: it is known.
        task_failures: Durable tasks that failed lately, as name, error and count.
        workers: Workers that are alive; None: there are no durable tasks.
    """

    samples: tuple[Sample, ...] = ()
    routes: tuple[RouteLoad, ...] = ()
    pools: tuple[PoolState, ...] = ()
    breakers: tuple[BreakerState, ...] = ()
    blocks: tuple[Block, ...] = ()
    failed: tuple[tuple[str, int], ...] = ()
    hung: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    deadlocks: tuple[tuple[int, int], ...] = ()
    unread: str = ""
    task_failures: tuple[tuple[str, str, int], ...] = ()
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class HistoryAnswer:
    """The samples of the last 15 minutes, the oldest first."""

    samples: tuple[Sample, ...] = field(default=())


Answer: TypeAlias = (
    Snapshot | HistoryAnswer | RequestsAnswer | BlocksAnswer | DatabaseAnswer | UpstreamsAnswer
)
