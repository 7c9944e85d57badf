"""The sessions of a pool: no more than so many, each lent to one borrower, who has waited longest first.

In place of asyncpg's pool, whose lending takes a task, two timers and a proxy for each statement: together a
fifth of a short query.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from freeloop.database.session import Session
from freeloop.errors import duplicate
from freeloop.waiting_line import WaitingLine

_LIFETIME: Final = 300.0  # s after which those are ended that were free all the time
# A request to cancel that reaches the server between two statements is lost, and the statement it was meant
# for runs to its end. The session is given up then, not waited for.
_SETTLING: Final = 2.0


class Sessions:
    """Makes sessions where one is wanted and none is free, and keeps those that come back.

    Args:
        connect: makes one.
        size: the most to hold.
    """

    def __init__(self, connect: Callable[[], Awaitable[Session]], size: int) -> None:
        self._connect = connect
        self._size = size
        self._room = size  # how many more there may be; a place is taken before its session is made
        self._standing: set[Session] = set()
        self._free: list[Session] = []  # the latest last, and taken first: so what is not needed grows old
        # None: the place for a session. Somebody waits only where nothing is free and there is no room.
        self._line = WaitingLine[Session | None](self._pass_on)
        self._settling: set[asyncio.Task[None]] = set()
        self._unneeded = 0  # how many of them were free all the time since they were looked at last
        self._retiring: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    @property
    def is_closing(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._drained is not None

    @property
    def open(self) -> int:
        """How many are open."""
        return sum(not session.is_closed() for session in self._standing)

    @property
    def free(self) -> int:
        """How many are open and lent to nobody."""
        return sum(not session.is_closed() for session in self._free)

    def take(self) -> Session | None:
        """Lend a free one; None: there is none."""
        while self._free:
            session = self._free.pop()
            self._unneeded = min(self._unneeded, len(self._free))
            if not session.is_closed():
                return session
            self._end(session)
        return None

    async def acquire(self, seconds: float | None = None) -> Session:
        """Lend one, which may have to come back or to be made first; ``seconds`` are for both together.

        Raises:
            TimeoutError: None came in time.
        """
        until = None if seconds is None else asyncio.get_running_loop().time() + seconds
        session = self.take()
        if session is None and self._room:
            self._room -= 1
        elif session is None:
            session = await self._line.wait(seconds)
        if session is not None and not session.is_closed():
            return session
        if session is not None:
            self._standing.discard(session)  # and its place is ours
        try:
            async with asyncio.timeout_at(until):
                session = await self._connect()
        except BaseException:
            self._pass_on(None)
            raise
        self._standing.add(session)
        return session

    def give_back(self, session: Session) -> None:
        """Take one back on which nothing is left open; or that is closed."""
        if session.is_closed():
            self._end(session)
        else:
            self._pass_on(session)

    async def settle(self, session: Session) -> None:
        """Take one back on which something may be left open; goes on also where its caller is cancelled."""
        task = asyncio.get_running_loop().create_task(self._settle(session))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.shield(task)

    def drop_free(self) -> None:
        """End those that are free."""
        for session in self._free:
            session.terminate()

    def drop(self) -> None:
        """End all."""
        for session in tuple(self._standing):
            session.terminate()

    async def close(self, patience: float, reason: BaseException) -> None:
        """Wait for those that are lent, then end all.

        Args:
            patience: seconds to wait at most.
            reason: what they get who still wait for a session then.
        """
        drained = self._drained = asyncio.get_running_loop().create_future()
        self._note_drained(drained)
        try:
            async with asyncio.timeout(patience):
                await drained
                await asyncio.gather(*(session.close() for session in self._free))
        except TimeoutError:
            pass
        finally:
            if self._retiring is not None:
                self._retiring.cancel()
            self.drop()
            self._line.close(lambda: duplicate(reason))

    async def _settle(self, session: Session) -> None:
        try:
            async with asyncio.timeout(_SETTLING):
                await session.settle()
        except Exception:  # noqa: BLE001 - whatever it is, the session is not fit to be lent
            session.terminate()
        except BaseException:
            session.terminate()
            raise
        finally:
            self.give_back(session)

    def _pass_on(self, session: Session | None) -> None:
        """Let who has waited longest have a session, or the place for one."""
        if self._line.call_next(session):
            return
        if session is None:
            self._room += 1
        else:
            self._free.append(session)
            if self._retiring is None:
                self._retiring = asyncio.get_running_loop().call_later(_LIFETIME, self._retire)
        if self._drained is not None:
            self._note_drained(self._drained)

    def _end(self, session: Session) -> None:
        session.terminate()  # where the other side has ended it, asyncpg has not cleaned up yet
        self._standing.discard(session)
        self._pass_on(None)

    def _retire(self) -> None:
        """End those that nobody has needed since the last time."""
        unneeded, self._free = self._free[: self._unneeded], self._free[self._unneeded :]
        self._unneeded = len(self._free)
        self._retiring = None
        if self._free:
            self._retiring = asyncio.get_running_loop().call_later(_LIFETIME, self._retire)
        for session in unneeded:
            self._end(session)

    def _note_drained(self, drained: asyncio.Future[None]) -> None:
        if self._room + len(self._free) == self._size and not drained.done():
            drained.set_result(None)
