"""The change feed: one reader of the change log for all who follow it.

One connection listens and one task reads; it keeps the newest changes in memory. Followers read from there,
and from the log while they are further behind. A follower has no queue: one that is slow is only behind, and
costs nothing. No connection is held while a follower waits.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import AsyncGenerator, Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from freeloop.database import Database
from freeloop.errors import StatementTimeout, Unavailable
from freeloop.events import wait_at_most
from freeloop.service.items.changelog import CHANNEL, ORIGIN, Change, Cursor, LogPage, read_log, reset_at

logger = logging.getLogger("freeloop.items")

PAGE: Final = 200
# How many followers may read the log at once: after a restart all come back together, and the requests
# need the pool too.
CATCH_UP_READS: Final = 2

Answer = TypeVar("Answer")


class _StoppedError(Exception):
    """The feed ends while a follower waits for the database."""


class ChangeFeed:
    """Follows the change log for this process.

    Args:
        database: Where the log is.
        tail: How many of the newest changes are kept in memory.
        poll: Seconds between two looks without a notification, for the case that one was lost.
        pending_poll: The longest pause in seconds between two looks while committed changes wait for an
            older transaction, whose end nobody announces.
        gap: Seconds at least between two looks, so that many notifications make one.
        followers: How many may follow at once.
    """

    def __init__(
        self,
        database: Database,
        *,
        tail: int = 1_000,
        poll: float = 5.0,
        pending_poll: float = 0.25,
        gap: float = 0.01,
        followers: int = 10_000,
    ) -> None:
        self._database = database
        self._tail_size = tail
        self._poll = poll
        self._pending_poll = pending_poll
        self._gap = gap
        self._max_followers = followers
        # The tail holds every change behind `_tail_start` up to and including `_head`.
        self._tail: list[Change] = []
        self._positions: list[Cursor] = []
        self._tail_start = ORIGIN
        self._head = ORIGIN
        self._poke = asyncio.Event()
        self._news = asyncio.Event()
        self._stopped = asyncio.Event()
        self._catch_up = asyncio.Semaphore(CATCH_UP_READS)
        self._tasks: list[asyncio.Task[None]] = []
        self._followers = 0

    @property
    def head(self) -> Cursor:
        """The position of the newest change that this process has read."""
        return self._head

    @property
    def followers(self) -> int:
        """How many follow now."""
        return self._followers

    async def start(self) -> None:
        """Find the end of the log and begin to follow it.

        Raises:
            DatabaseUnavailable: The log cannot be read.
        """
        if self._tasks:
            return
        self._rewind(await read_log(self._database, ORIGIN, limit=0))
        self._tasks = [
            asyncio.create_task(self._listen(), name="item-changes-listen"),
            asyncio.create_task(self._read(), name="item-changes-read"),
        ]

    def stop(self) -> None:
        """End every follower's iteration, at once and for good."""
        self._stopped.set()
        self._announce()

    async def close(self) -> None:
        """Stop, and end the tasks. It may be called again."""
        self.stop()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def admit(self) -> None:
        """Refuse one more follower where there are as many as allowed.

        Raises:
            Unavailable: There are (503).
        """
        if self._followers >= self._max_followers:
            raise Unavailable(
                f"{self._followers} streams follow the changes, as many as allowed", retry_after=10
            )

    async def find_end(self) -> Cursor:
        """Return the end of the log: the position from which only changes to come are read.

        Raises:
            DatabaseUnavailable: The log cannot be read.
        """
        return (await read_log(self._database, ORIGIN, limit=0)).last

    async def subscribe(self, after: Cursor | None = None) -> AsyncGenerator[Change, None]:
        """Iterate over the changes behind a position, in order, each once, until the feed stops.

        A database that cannot be reached makes it wait, not fail.

        Args:
            after: The last change that was seen; None for the end of the log.

        Yields:
            Changes. One of kind ``reset`` where the position is no longer in the log (pruned, or from
            another database): read all items again; the iteration goes on from the reset's position.
        """
        self._followers += 1
        try:
            position = after
            while position is None and not self._stopped.is_set():
                position = (await self._read_for_follower(ORIGIN, limit=0)).last
            while position is not None and not self._stopped.is_set():
                news = self._news
                changes = await self._next_changes(position)
                for change in changes:
                    if self._stopped.is_set():
                        return
                    yield change
                    position = change.cursor
                if not changes:
                    # What the tail covers is announced; a position beyond it came from another process,
                    # and the log may have been replaced since.
                    await wait_at_most(news, None if self._covers(position) else self._poll)
        except _StoppedError:
            return
        finally:
            self._followers -= 1

    async def _next_changes(self, position: Cursor) -> list[Change]:
        if self._covers(position):
            # A copy: the reader may trim the tail while the follower sends.
            first = bisect_right(self._positions, position)
            return self._tail[first : first + PAGE]
        page = await self._read_for_follower(position, limit=PAGE)
        if position < page.horizon:
            return [reset_at(page.last, "the changes after this position are no longer kept")]
        if position > page.last:
            return [reset_at(page.last, "this position is not in the change log")]
        return page.changes

    def _covers(self, position: Cursor) -> bool:
        return self._tail_start <= position <= self._head

    async def _read_for_follower(self, after: Cursor, *, limit: int) -> LogPage:
        pause = 0.05
        while True:
            try:
                async with self._catch_up:
                    return await self._unless_stopped(read_log(self._database, after, limit=limit))
            except (Unavailable, StatementTimeout):
                await wait_at_most(self._stopped, pause)
                if self._stopped.is_set():
                    raise _StoppedError from None
                pause = min(pause * 2, self._poll)

    async def _unless_stopped(self, reading: Coroutine[Any, Any, Answer]) -> Answer:
        # The shutdown must not wait for a statement's time limit.
        read = asyncio.ensure_future(reading)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({read, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not read.done():
                raise _StoppedError
            return read.result()
        finally:
            for task in (read, stopped):
                task.cancel()
            await asyncio.gather(read, stopped, return_exceptions=True)

    async def _listen(self) -> None:
        pause = 0.05
        while True:
            try:
                async with self._database.listen(CHANNEL) as notifications:
                    # A reconnect is announced by a notification too, so what was missed is read.
                    async for _ in notifications:
                        pause = 0.05
                        self._poke.set()
            except Exception as error:  # noqa: BLE001  # without the listener the poll still finds everything
                logger.warning("the listener for item changes failed and starts again: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, self._poll)

    async def _read(self) -> None:
        pause = self._gap
        while True:
            self._poke.clear()
            try:
                page = await read_log(self._database, self._head, limit=PAGE)
            except Exception as error:  # noqa: BLE001  # whatever it was, the next look may succeed
                logger.warning("the item changes could not be read and are tried again: %s", error)
                pause = min(pause * 2, self._poll)
                await asyncio.sleep(pause)
                continue
            if not page.horizon <= self._head <= page.last:
                self._rewind(page)
            elif page.changes:
                self._append(page.changes)
            if page.full:
                continue
            await asyncio.sleep(self._gap)
            if page.pending:
                # A commit of ours in between is announced, but not the end of the transaction that holds
                # the changes back.
                pause = min(pause * 2, self._pending_poll)
                await wait_at_most(self._poke, pause)
            else:
                pause = self._gap
                await wait_at_most(self._poke, self._poll)

    def _append(self, changes: list[Change]) -> None:
        self._tail += changes
        self._positions += [change.cursor for change in changes]
        self._head = self._positions[-1]
        # Trimmed by quarters: cutting a list's front moves all the rest.
        if len(self._tail) > self._tail_size * 5 // 4:
            surplus = len(self._tail) - self._tail_size
            self._tail_start = self._positions[surplus - 1]
            del self._tail[:surplus]
            del self._positions[:surplus]
        self._announce()

    def _rewind(self, page: LogPage) -> None:
        """Begin anew at the end of the log; followers before it read the log, which knows what is lost."""
        self._tail.clear()
        self._positions.clear()
        self._head = self._tail_start = page.last
        self._announce()

    def _announce(self) -> None:
        # A new event for those who look after this moment: none of them can miss it or hold up another.
        news, self._news = self._news, asyncio.Event()
        news.set()
