"""One session on the server, which is left as it was found: asyncpg's connection, with two gaps closed."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import asyncpg

_KEEPALIVE: Final = {
    "TCP_KEEPIDLE": 10,  # seconds
    "TCP_KEEPALIVE": 10,  # the same on macOS
    "TCP_KEEPINTVL": 5,  # seconds
    "TCP_KEEPCNT": 2,
    "TCP_USER_TIMEOUT": 10_000,  # milliseconds
}

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection


class Session(_Connection):
    """A connection that leaves no transaction and no setting behind.

    asyncpg sends Parse and Flush, and the Sync only with the arguments. Where these cannot be encoded, or the
    caller is cancelled in between, none is sent: the server stays in a transaction, with locks on the tables
    of the statement, and PgBouncer keeps the server for this client, until the next statement.
    """

    _unsettled = False

    def notice_silence(self) -> None:
        """Let the kernel end the connection where the other side says nothing.

        Idle, it is asked after 10 s, and ends 5 s later. What was sent and is not confirmed (by the other
        kernel, so a slow statement is no silence) ends it after 10 s too, and not after TCP's 15 minutes.
        Where the system has no such options, its defaults hold.
        """
        connection = self._transport.get_extra_info("socket")  # type: ignore[attr-defined, unused-ignore]
        if connection is None or connection.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def mark_unsettled(self) -> None:
        """Note that something went wrong, so that the server may be in the middle of a statement."""
        self._unsettled = True

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be done: no transaction is open, nothing went wrong; or it is closed."""
        return self.is_closed() or not (
            self._unsettled or self.is_in_transaction() or self._protocol._is_cancelling()  # type: ignore[attr-defined, unused-ignore]  # asyncpg's own
        )

    async def settle(self) -> None:
        """End what may be left of a statement, and a transaction that is open."""
        with suppress(asyncpg.InFailedSQLTransactionError):
            await self.execute("select")  # where a statement is being cancelled, after that
        await self.reset()
        self._unsettled = False

    def get_reset_query(self) -> str:
        """Let asyncpg's reset roll back, and send nothing more."""
        return ""

    async def find_server_pid(self) -> int:
        """Ask which process answers, in a way that works whatever stands in between."""
        # Without a name, and with no Sync before its arguments, it stays on one server.
        statement = await self.prepare("select pg_backend_pid()", name="")
        return int(await statement.fetchval())

    async def _introspect_types(self, *arguments: object) -> Any:  # noqa: ANN401 - asyncpg's own
        # It turns the JIT compiler off, asks, and turns it on again: each on another server, where a pooler
        # lends one for a transaction. In one transaction it is one server, and a failure undoes it.
        async with self.transaction():
            return await super()._introspect_types(*arguments)  # type: ignore[misc]  # not in the stubs
