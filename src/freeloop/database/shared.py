"""Shared reads: callers that wait for the same answer at the same time get it from one query.

A query answers those who asked before it was sent to the server, and nobody else: whoever asks later waits
for the next one. So each caller sees at least what was committed before it asked, as with a query of its
own. Nothing is kept for later, so nothing goes stale and nothing has to be invalidated.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import Context
from functools import partial
from types import CoroutineType, GeneratorType
from typing import Any, Final, TypeAlias

import asyncpg

from freeloop.database.departures import Departures, Flight
from freeloop.database.identity import identify, is_exact
from freeloop.database.queries import Lent
from freeloop.errors import DatabaseUnavailable, StatementTimeout, duplicate
from freeloop.scope import Scope, choose_request_id, limit_wait, spend

_Encode: TypeAlias = Callable[[list[asyncpg.Record]], Any]
_Query: TypeAlias = tuple[str, tuple[object, ...], _Encode | None]

_ROUTE: Final = "shared read"
# What the callers of one flight could spoil for each other, or use once only.
_CHANGEABLE: Final = (list, dict, set, bytearray, CoroutineType, GeneratorType)


class SharedReads:
    """The shared reads of one database.

    Args:
        statement: gives a connection for one statement, and raises our errors for asyncpg's.
        timed: takes the time of a statement.
        name: the name of the database object, for messages.
    """

    def __init__(
        self,
        statement: Callable[[], AbstractAsyncContextManager[Lent]],
        timed: Callable[[str], AbstractContextManager[object]],
        *,
        name: str,
    ) -> None:
        self._statement = statement
        self._timed = timed
        self._name = name
        self._departures: Departures[_Query] = Departures()
        # Those that were given up stay until they have ended; the loop itself holds tasks weakly.
        self._tasks: dict[Flight[_Query], asyncio.Task[Any]] = {}

    def __len__(self) -> int:
        """How many queries run, end, or wait for the one before."""
        return len(self._departures.flights() | self._tasks.keys())

    async def read(self, sql: str, args: tuple[object, ...], encode: _Encode | None) -> Any:  # noqa: ANN401
        """Answer one caller; see :meth:`freeloop.database.Database.shared`."""
        key = identify(sql, args, encode)
        if key is None:
            return await self._ask(Flight(None, (sql, args, encode), alone=True))
        if not is_exact(args):
            # The caller may change a list while others still wait for the answer to what was in it.
            args = copy.deepcopy(args)
        flight, starts = self._departures.join(key, (sql, args, encode))
        if not flight.alone:
            return await self._sit(flight, starts=starts)
        # A plain statement, under the caller's own scope, deadline and cancellation.
        try:
            return await self._ask(flight)
        finally:
            self._start(self._departures.end(flight))

    async def _sit(self, flight: Flight[_Query], *, starts: bool) -> Any:  # noqa: ANN401 - as above
        loop = asyncio.get_running_loop()
        seat: asyncio.Future[Any] = loop.create_future()
        flight.seats.add(seat)
        if starts:
            self._start(flight)
        remaining = limit_wait(None)
        timer = None if remaining is None else loop.call_later(remaining, self._give_up, seat)
        try:
            with spend("sql"):
                return await seat
        finally:
            if timer is not None:
                timer.cancel()
            if not flight.over:
                self._leave(flight, seat)
            # An error's traceback holds this frame, and the seat holds the error.
            del seat

    def _start(self, flight: Flight[_Query] | None) -> None:
        if flight is not None:
            # It belongs to none of its callers: an empty context keeps their scopes and variables out.
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._fly(flight), name=_ROUTE, context=Context())
            self._tasks[flight] = task
            task.add_done_callback(partial(self._land, flight))

    async def _fly(self, flight: Flight[_Query]) -> Any:  # noqa: ANN401 - as above
        scope = Scope(choose_request_id(None, None), kind="background", route=_ROUTE)
        scope.enter()
        try:
            return await self._ask(flight)
        finally:
            scope.leave()

    async def _ask(self, flight: Flight[_Query]) -> Any:  # noqa: ANN401 - as above
        sql, args, encode = flight.query
        async with self._statement() as (connection, limit):
            # As late as can be: whoever asked while this waited for a connection comes along.
            self._departures.depart(flight)
            with self._timed(sql):
                rows = await connection.fetch(str(sql), *args, timeout=limit)
        return rows if encode is None else _encode(encode, rows)

    def _land(self, flight: Flight[_Query], task: asyncio.Task[Any]) -> None:
        del self._tasks[flight]
        self._start(self._departures.end(flight))
        # Who was cancelled just now still has a seat.
        seats = [seat for seat in flight.seats if not seat.done()]
        flight.seats.clear()
        if task.cancelled():
            # Not by us, who do so only when nobody waits: somebody ends all tasks of the loop.
            error: BaseException | None = DatabaseUnavailable(
                f"a shared read on '{self._name}' was cancelled"
            )
        else:
            error = task.exception()
        if error is not None:
            for seat in seats:
                seat.set_exception(error)
                error = duplicate(error)
            return
        answer, is_rows = task.result(), flight.query[2] is None
        for seat in seats:
            seat.set_result(answer.copy() if is_rows else answer)

    def _leave(self, flight: Flight[_Query], seat: asyncio.Future[Any]) -> None:
        follower = self._departures.leave(flight, seat)
        if flight.over and (task := self._tasks.get(flight)) is not None:
            task.cancel("nobody waits for it any more")
        self._start(follower)

    def _give_up(self, seat: asyncio.Future[Any]) -> None:
        if not seat.done():
            seat.set_exception(
                StatementTimeout(
                    f"a shared read on '{self._name}' was not answered before the deadline of its caller. "
                    "Make it do less, or allow it more time (FREELOOP_DEADLINE, @deadline)."
                )
            )


def _encode(encode: _Encode, rows: list[asyncpg.Record]) -> Any:  # noqa: ANN401 - what it returns
    # In an empty context also for one who is alone: what one caller's variables say (who is logged in, in
    # which language) must not shape the answer that others get, nor work as long as there are no others.
    answer = Context().run(encode, rows)
    if isinstance(answer, _CHANGEABLE):
        raise TypeError(
            f"encode of a shared read returned a {type(answer).__name__}, which its callers could spoil for "
            "each other. Return what cannot be changed: bytes, str, a tuple, a frozen dataclass."
        )
    return answer
