"""Read replicas: which of them may answer, found out by looking at them and at the primary each second."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Final

import asyncpg

from freeloop.database.address import Address
from freeloop.database.connect import Connector
from freeloop.database.freshness import NEVER, Timeline, Verdict, find_end, judge, summarize
from freeloop.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from freeloop.database.database import Database

logger = logging.getLogger("freeloop.database")

_INTERVAL: Final = 1.0
_PATIENCE: Final = 2.0
_SHORTEST_LAG: Final = 3.0  # the look that a busy replica has not replayed yet, the one before, and one more

# Whatever is committed before the question is before this position, also with synchronous_commit = off.
_END: Final = (
    "select (pg_current_wal_insert_lsn() - '0/0')::int8 as position,"
    " current_setting('wal_block_size')::int as page"
)
_REPLAYED: Final = (
    "select pg_is_in_recovery() as standby, (pg_last_wal_replay_lsn() - '0/0')::int8 as replayed"
)


class Lookout:
    """Asks one server one question again and again, on a connection of its own, which no full pool delays.

    Args:
        address: where the server listens.
        question: the statement; its answer is one row.
        name: the name of the database object, for messages.
    """

    def __init__(self, address: Address, question: str, *, name: str) -> None:
        self._connector = Connector(address, statement_timeout=_PATIENCE, name=name)
        self._question = question
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def ask(self) -> asyncpg.Record:
        """Return the answer, within 2 seconds.

        Raises:
            TimeoutError: There was none in time.
            DatabaseUnavailable: The server cannot be reached, or the connection broke.
        """
        try:
            async with asyncio.timeout(_PATIENCE):
                if self._connection is None or self._connection.is_closed():
                    self._connection = await self._connector.connect()
                answer = await self._connection.fetchrow(self._question)
        except BaseException as error:
            self.close()
            if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
                raise DatabaseUnavailable(f"it cannot be asked: {error}") from error
            raise
        assert answer is not None  # noqa: S101 - neither question has a FROM
        return answer

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


class Replica:
    """One replica: its pool, and how fresh it is.

    Args:
        database: its pool.
        address: where it listens.

    Attributes:
        fresh: Before which moment it has everything, in seconds of :func:`time.monotonic`.
        trouble: Why it does not answer reads; None: it does.
    """

    def __init__(self, database: Database, address: Address) -> None:
        self.database = database
        self.place = address.place
        self.lookout = Lookout(address, _REPLAYED, name=database.name)
        self.fresh = NEVER
        self.trouble: str | None = None

    def take_out(self, trouble: str) -> None:
        """Let it answer no reads until it is found well again; said once in the log."""
        if self.trouble is None:
            logger.warning(
                "a read replica is left out",
                extra={"database": self.database.name, "place": self.place, "trouble": trouble},
            )
        self.trouble = trouble

    def take_in(self) -> None:
        """Let it answer reads."""
        if self.trouble is not None:
            logger.info(
                "a read replica answers again", extra={"database": self.database.name, "place": self.place}
            )
        self.trouble = None


class Replicas:
    """All replicas of one primary.

    Args:
        primary: where the primary listens.
        replicas: the replicas; none is allowed.
        name: the name of the primary's database object, for messages.
        max_lag: seconds that a replica may be behind the primary and still answer; at least 3, since looks
            are a second apart.

    Raises:
        ValueError: ``max_lag`` is no such number.
    """

    def __init__(
        self,
        primary: Address,
        replicas: Sequence[Replica],
        *,
        name: str,
        max_lag: float,
    ) -> None:
        if type(max_lag) not in {int, float} or not _SHORTEST_LAG <= max_lag < math.inf:
            raise ValueError(f"max_lag: expected seconds, {_SHORTEST_LAG:g} or more; got {max_lag!r}")
        self.all = tuple(replicas)
        self._lookout = Lookout(primary, _END, name=name)
        self._timeline = Timeline()
        self._sees_primary = True
        self._max_lag = max_lag
        self._watch: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Look once, and go on looking; a replica that is down does not stop the start."""
        if self.all and self._watch is None:
            await self._look()
            # Of no request: it goes on when that which opened the database has ended.
            self._watch = asyncio.get_running_loop().create_task(
                self._keep_looking(), name="read replicas", context=Context()
            )

    async def close(self) -> None:
        """Close all pools; idempotent, bounded as the closing of one."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait([watch], timeout=_PATIENCE)
        self._lookout.close()
        for replica in self.all:
            replica.lookout.close()
        await asyncio.gather(*(replica.database.close() for replica in self.all))

    def choose(self, wrote: float) -> Replica | Verdict:
        """Return the replica with the least to do of those that may answer, or why none may.

        Args:
            wrote: When the latest write ended that the reader must see; minus infinity: there was none.
        """
        now = time.monotonic()
        chosen: Replica | None = None
        verdicts: set[Verdict] = set()
        for replica in self.all:
            if replica.trouble is not None:
                continue
            verdict = judge(replica.fresh, wrote=wrote, now=now, max_lag=self._max_lag)
            verdicts.add(verdict)
            if verdict == "fresh" and (chosen is None or replica.database.load < chosen.database.load):
                chosen = replica
        return chosen or summarize(verdicts)

    def lag(self, replica: Replica) -> float:
        """Return by how many seconds a replica is behind at most; infinity: not known."""
        return time.monotonic() - replica.fresh

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await self._look()
            except Exception:
                # Whatever it is, without looks no replica would ever be judged again.
                logger.exception("the read replicas could not be looked at")

    async def _look(self) -> None:
        moment = time.monotonic()
        # Where the primary does not answer, what is known of the replicas holds until it is too old.
        try:
            end = await self._lookout.ask()
        except (DatabaseUnavailable, OSError) as error:
            if self._sees_primary:
                logger.warning(
                    "the primary cannot be looked at; its replicas answer until its last look is too old",
                    extra={"trouble": str(error) or type(error).__name__},
                )
            self._sees_primary = False
        else:
            self._timeline.add(moment, find_end(end["position"], end["page"]))
            self._sees_primary = True
        # At the same time: one that says nothing must not keep the others from being found well.
        await asyncio.gather(*(self._look_at(replica) for replica in self.all))

    async def _look_at(self, replica: Replica) -> None:
        try:
            answer = await replica.lookout.ask()
            await replica.database.open(timeout=_PATIENCE)
        except TimeoutError:
            replica.take_out(f"no answer within {_PATIENCE:.3g} s")
            # What waits for an answer there would wait for its whole statement timeout, and can be asked of
            # the primary instead.
            replica.database.drop_connections()
            return
        except (DatabaseUnavailable, OSError) as error:
            replica.take_out(str(error))
            return
        if not answer["standby"] or answer["replayed"] is None:
            replica.fresh = NEVER
            replica.take_out("it is no standby, so nobody can tell how fresh it is")
            return
        replica.fresh = self._timeline.find_moment(answer["replayed"])
        if self.lag(replica) <= self._max_lag:
            replica.take_in()
        elif self._sees_primary:
            replica.take_out(f"it is more than {self._max_lag:.3g} s behind")
        else:
            replica.take_out(f"how far behind it is has not been known for {self._max_lag:.3g} s")
