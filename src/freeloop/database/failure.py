"""What went wrong, in our own errors: a pure decision over the exceptions that asyncpg raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio
import asyncpg

from freeloop.errors import DatabaseUnavailable, FreeloopError, StatementTimeout

# The server answered, and the same login will be refused again: no reason to try once more.
LOGIN_REFUSED: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
)

_SIGN_OF_LIFE: Final = 2.0

# Class 08, class 57 without query_canceled (shutdown, crash, starting up), and sessions the server ended.
_BROKEN: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    OSError,
)

# The statement was rolled back, and may succeed once somebody has made room.
_EXHAUSTED: Final = (asyncpg.DiskFullError, asyncpg.OutOfMemoryError)


def connect_failure(
    error: BaseException, place: str, name: str, setting: str = "FREELOOP_DATABASE_URL"
) -> DatabaseUnavailable:
    """Describe why no connection could be made.

    Args:
        error: what asyncpg raised.
        place: where the server was looked for, without credentials.
        name: the name of the database object.
        setting: the setting that the address came from.
    """
    if isinstance(error, LOGIN_REFUSED):
        return DatabaseUnavailable(
            f"PostgreSQL at {place} refused the login for '{name}': {error}. Check {setting}."
        )
    reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return DatabaseUnavailable(
        f"no connection to '{name}' at {place}: {reason}. Is PostgreSQL running there?"
    )


def is_final(error: DatabaseUnavailable) -> bool:
    """Tell whether trying the same connection again cannot help."""
    return isinstance(error.__cause__, LOGIN_REFUSED)


def statement_failure(
    error: Exception, *, closed: bool, name: str, limit: float | None
) -> FreeloopError | None:
    """Return our error for one that a statement raised, or None where it passes unchanged.

    Args:
        error: what asyncpg raised.
        closed: whether the connection is closed now.
        name: the name of the database object.
        limit: the statement timeout in seconds, None for none.
    """
    if isinstance(error, TimeoutError):
        return StatementTimeout(
            f"a statement on '{name}' took longer than {limit:.3g} s and was cancelled on the server. Make "
            "it do less, or raise FREELOOP_DATABASE_STATEMENT_TIMEOUT or the deadline, whichever came first."
            if limit is not None
            else f"a statement on '{name}' took too long and was cancelled on the server."
        )
    if isinstance(error, asyncpg.QueryCanceledError):
        return StatementTimeout(f"a statement on '{name}' was cancelled on the server: {error}.")
    # An InterfaceError is a mistake in the caller's code, unless it only says that the connection is gone.
    gone = closed and isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError)
    if isinstance(error, _EXHAUSTED):
        return DatabaseUnavailable(f"PostgreSQL of '{name}' has run out of resources: {error}")
    if gone or isinstance(error, _BROKEN):
        return DatabaseUnavailable(
            f"the connection to '{name}' broke during a statement, which may have taken effect: {error}"
        )
    return None


@contextmanager
def translated(
    connection: asyncpg.Connection[asyncpg.Record], name: str, limit: float | None
) -> Iterator[None]:
    """Raise our error in place of asyncpg's. Only calls of asyncpg belong in the block.

    A caller's own TimeoutError or OSError would be mistaken for one of the database.
    """
    try:
        yield
    except Exception as error:
        ours = statement_failure(error, closed=connection.is_closed(), name=name, limit=limit)
        if ours is None:
            raise
        raise ours from error


async def find_failure(
    error: BaseException, connection: asyncpg.Connection[asyncpg.Record], name: str, limit: float | None
) -> FreeloopError | None:
    """Return what an error out of a statement's block came to; None: it says so itself.

    Args:
        error: The error.
        connection: Where the statement ran; ended where the server says nothing.
        name: As of :func:`statement_failure`.
        limit: As there.
    """
    if not isinstance(error, Exception):
        return None
    ours = statement_failure(error, closed=connection.is_closed(), name=name, limit=limit)
    if isinstance(ours, StatementTimeout):
        ours.__cause__ = error
        return await find_cause(ours, connection, name)
    return ours


async def find_cause(
    error: StatementTimeout, connection: asyncpg.Connection[asyncpg.Record], name: str
) -> FreeloopError:
    """Return what a statement came to that was not answered in time, within 2 s.

    A server that is there confirms that it has cancelled the statement, and answers the next one: the
    statement was slow, and is again when it is repeated. One that says nothing is gone, or the way to it is:
    the same request may be answered at once when it is back.

    Args:
        error: what the statement raised.
        connection: where it ran; ended where the server says nothing.
        name: the name of the database object.
    """
    if not isinstance(error.__cause__, TimeoutError):
        return error  # it is the server that has said so
    # Shielded, since in a cancelled anyio scope every await is cancelled anew.
    with anyio.move_on_after(_SIGN_OF_LIFE, shield=True):
        try:
            await connection.execute("select")  # after the confirmation, for which asyncpg waits
        except asyncpg.InFailedSQLTransactionError:
            return error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pass
        else:
            return error
    if not connection.is_closed():
        connection.terminate()
    return DatabaseUnavailable(
        f"'{name}' did not answer a statement in time, nor anything after it: the server or the way to it is "
        "gone. The statement may have taken effect."
    )
