"""Where PostgreSQL listens, and who keeps it running.

Both are plain descriptions: this module opens nothing, so the embedded server, the pool and the
migrations can share it without knowing one another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """Where PostgreSQL listens.

    Either a ``dsn`` or the single fields; where both are given, a field wins over the part of the
    DSN it names. A ``host`` that starts with ``/`` is the folder of a Unix socket.

    Args:
        dsn: ``postgresql://user:password@host:port/database``, or None for the embedded server.
        host: host name, IP address or socket folder.
        port: TCP port (or the number in the socket's name).
        user: role to log in as.
        database: database to open.
        password: never shown by ``repr``.
    """

    dsn: str | None = field(default=None, repr=False)
    host: str | None = None
    port: int | None = None
    user: str | None = None
    database: str | None = None
    password: str | None = field(default=None, repr=False)

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``asyncpg.connect``, without the ones left open."""
        arguments = {
            "dsn": self.dsn,
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "database": self.database,
            "password": self.password,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    @property
    def place(self) -> str:
        """``host:port/database`` for messages, without user and password."""
        parts = urlsplit(self.dsn or "")
        # By hand, since urlsplit's own host and port refuse the several hosts that a DSN may name.
        host = parts.netloc.rpartition("@")[2]
        if self.host is not None or self.port is not None:
            host = f"{self.host or 'localhost'}:{self.port or 5432}"
        return f"{host or 'localhost:5432'}/{self.database or parts.path.lstrip('/')}".rstrip("/")


class ServerPort(Protocol):
    """Who keeps the server running that an address names."""

    async def ensure(self) -> None:
        """Make sure that the server runs, or raise within a bounded time.

        Called before a reconnect when a connection was refused. The embedded server restarts its
        keeper here; a server somebody else runs has no such port.
        """
