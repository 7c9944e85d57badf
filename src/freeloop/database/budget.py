"""How many connections an app may open, against how many PostgreSQL allows: a sum, made before the start.

The sum and the verdict are pure; :func:`check_budget` asks the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import asyncpg

from freeloop.database.address import Address
from freeloop.database.connect import connected
from freeloop.errors import DatabaseUnavailable, StartError

_WORKERS_VARIABLE: Final = "WEB_CONCURRENCY"
_PATIENCE: Final = 2.0  # s, with a replica

_QUERY: Final = """
SELECT pg_postmaster_start_time()::text || current_setting('port') AS server,
       current_setting('max_connections')::int AS max_connections,
       current_setting('superuser_reserved_connections')::int AS for_superusers,
       coalesce(current_setting('reserved_connections', true)::int, 0) AS for_privileged,
       role.rolname::text AS role,
       CASE WHEN NOT role.rolsuper AND role.rolconnlimit >= 0 THEN role.rolconnlimit END AS role_limit,
       base.datname::text AS database,
       CASE WHEN NOT role.rolsuper AND base.datconnlimit >= 0 THEN base.datconnlimit END AS database_limit
  FROM pg_catalog.pg_roles AS role, pg_catalog.pg_database AS base
 WHERE role.rolname = session_user AND base.datname = current_database()
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """The connections that an app holds at most.

    A process that starts holds one of the pool and one of the migrations, and opens its listener later: the
    latter two are counted once.

    Args:
        pool: connections of one process's pool; 0 where they end at a pooler.
        listeners: connections of one process outside the pool.
        workers: processes of one replica.
        replicas: machines or containers that run the app at once.
        reserve: connections that are left to others.
        pools: pools of one process on the same server.
    """

    pool: int
    listeners: int = 1
    workers: int = 1
    replicas: int = 1
    reserve: int = 5
    pools: int = 1

    @property
    def processes(self) -> int:
        """All processes of the app."""
        return self.workers * self.replicas

    @property
    def total(self) -> int:
        """The connections of all processes, and the reserve."""
        return self.processes * (self.pools * self.pool + self.listeners) + self.reserve

    def find_fitting_pool(self, limit: int) -> int:
        """Return the largest pool of a process with which the total is within a limit; below 1: none."""
        return ((limit - self.reserve) // self.processes - self.listeners) // self.pools

    def __str__(self) -> str:
        """The sum, as ``4 workers x 3 replicas x (10 pool + 1 listener) + 5 reserve = 137``."""
        each = _count(self.listeners, "listener")
        if self.pool:
            pools = f"{self.pools} x {self.pool}" if self.pools > 1 else self.pool
            each = f"({pools} pool + {each})"
        factors = f"{_count(self.workers, 'worker')} x {_count(self.replicas, 'replica')} x {each}"
        return f"{factors} + {self.reserve} reserve = {self.total}"


@dataclass(frozen=True, slots=True)
class Limit:
    """One of PostgreSQL's limits.

    Args:
        connections: that it leaves to the app.
        reason: where it comes from.
        raising: what raises it, to which a number is added.
        kept: connections that it counts and does not leave to the app.
    """

    connections: int
    reason: str
    raising: str
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """The connections that PostgreSQL allows.

    Args:
        server: which one it is, whatever it is called.
        max_connections: of the server.
        for_superusers: ``superuser_reserved_connections``: the way in for an administrator when all others
            are taken, so not offered, whoever the app logs in as.
        for_privileged: ``reserved_connections`` of PostgreSQL 16 and newer, likewise.
        role: whom the app logs in as.
        role_limit: its CONNECTION LIMIT; None: no limit, as for a superuser.
        database: what the app opens.
        database_limit: its CONNECTION LIMIT; None as above.
    """

    server: str
    max_connections: int
    for_superusers: int
    for_privileged: int
    role: str
    role_limit: int | None
    database: str
    database_limit: int | None

    @property
    def smallest(self) -> Limit:
        """The limit that is reached first."""
        reason = f"max_connections {self.max_connections}"
        if self.for_superusers:
            reason += f" - {self.for_superusers} reserved for superusers"
        if self.for_privileged:
            reason += f" - {self.for_privileged} reserved_connections"
        kept = self.for_superusers + self.for_privileged
        limits = [Limit(self.max_connections - kept, reason, "max_connections to", kept)]
        for number, kind, name in (
            (self.role_limit, "role", self.role),
            (self.database_limit, "database", self.database),
        ):
            if number is not None:
                change = f"ALTER {kind.upper()} {_quote(name)} CONNECTION LIMIT"
                limits.append(Limit(number, f"the CONNECTION LIMIT of the {kind} {name}", change))
        return min(limits, key=lambda limit: limit.connections)


def describe_excess(budget: Budget, offer: Offer, place: str = "PostgreSQL") -> str | None:
    """Say in one line how far a budget is over what is offered, and what would fit; None where it fits."""
    limit = offer.smallest
    if budget.total <= limit.connections:
        return None
    fitting = budget.find_fitting_pool(limit.connections)
    if budget.pool and fitting >= 1:
        lowering = f"Lower FREELOOP_DATABASE_POOL_SIZE to {fitting}"
    else:
        lowering = "Run fewer workers or replicas"
    raising = f"raise the limit ({limit.raising} {budget.total + limit.kept})"
    pooling = ", or put PgBouncer in between" if budget.pool else ""
    allowed = f"{place} allows {limit.connections} ({limit.reason})"
    return f"{budget} connections, but {allowed}. {lowering}, {raising}{pooling}."


async def check_budget(
    address: Address, budget: Budget, *, replicas: Sequence[Address] = (), within: float = 30.0
) -> None:
    """Refuse a start that could take more connections than PostgreSQL allows, on any of its servers.

    Each replica has a sum and a limit of its own: a pool as large as the primary's, and one listener, which
    asks how far it is. Two addresses that lead to one server share a sum. A replica that cannot be asked now
    is not counted, since it stops no start.

    Behind a pooler the pools of the app are not counted, since their connections end there: its own limits
    are shown to nobody but its administrator. The listeners and the reserve are counted, where
    ``address.direct`` leads to PostgreSQL; without it there is nothing to count.

    Args:
        address: where PostgreSQL listens.
        budget: what the app holds at most, of the primary.
        replicas: where read replicas listen; each host of each address is one.
        within: seconds during which an unreachable primary is tried again.

    Raises:
        StartError: The budget is over the limit; with the sum.
        DatabaseUnavailable: The server was not reached in time.
    """
    sums: dict[str, tuple[Budget, Offer, str]] = {}
    if address.pooler == "none":
        offer = await _ask(address, within)
        sums[offer.server] = budget, offer, "PostgreSQL"
    elif address.direct is not None:
        offer = await _ask(address.direct, within)
        sums[offer.server] = replace(budget, pool=0), offer, "PostgreSQL"
    hosts = [host for each in replicas if each.pooler == "none" for host in each.split()]
    answers = await asyncio.gather(*(_ask_replica(host) for host in hosts))
    for host, found in zip(hosts, answers, strict=True):
        if found is None:
            continue
        if found.server in sums:
            ours, _, place = sums[found.server]
            both = replace(ours, pools=ours.pools + 1, listeners=ours.listeners + 1)
            sums[found.server] = both, found, place
        else:
            sums[found.server] = replace(budget, listeners=1), found, f"the replica at {host.place}"
    for one in sums.values():
        if excess := describe_excess(*one):
            raise StartError(excess)


async def _ask(address: Address, within: float) -> Offer:
    async with connected(address, within=within, name="main") as connection:
        row = await connection.fetchrow(_QUERY, timeout=max(1.0, within))
    assert row is not None  # noqa: S101 - who is logged in, and where, is there
    return Offer(**row)


async def _ask_replica(address: Address) -> Offer | None:
    try:
        return await _ask(address, _PATIENCE)
    except (DatabaseUnavailable, asyncpg.PostgresError):
        return None


def count_workers(environment: Mapping[str, str]) -> int:
    """Return how many processes accept on this process's sockets; 1 where nobody says.

    Args:
        environment: where ``WEB_CONCURRENCY`` says it: our commands set it to what they start, and uvicorn
            and gunicorn take their number from it.
    """
    text = environment.get(_WORKERS_VARIABLE, "")
    return max(1, int(text)) if text.isdecimal() else 1


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _quote(name: str) -> str:
    """Quote a name for SQL where it has to be."""
    plain = name.isascii() and name.isidentifier() and name == name.lower()
    return name if plain else '"' + name.replace('"', '""') + '"'
