"""What must be mended before a connection can succeed, in one line each."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import asyncpg

from freeloop.database.address import Address
from freeloop.database.failure import LOGIN_REFUSED

# Invalid data, and syntax or access: of a login, that is a parameter that the server does not know.
_PARAMETER_REFUSED: Final = ("22", "42")
# PgBouncer says everything as a violation of the protocol. These do not pass by themselves.
_POOLER_REFUSED: Final = ("unsupported startup parameter", "authentication failed", "does not exist")


def describe_mistake(error: Exception, address: Address) -> str | None:
    """Describe in one line what must be mended before a connection can succeed.

    Args:
        error: what asyncpg raised.
        address: what it was asked to connect to.

    Returns:
        None where trying again may help, and for a login that was refused.
    """
    place = address.place
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of PostgreSQL at {place} was not accepted: {error.verify_message.rstrip('.')}. "
            "Expected one that a certificate in sslrootcert has signed, and for verify-full one that is made "
            "out to this host."
        )
    if isinstance(error, ConnectionError) and "rejected SSL upgrade" in str(error):
        return (
            f"PostgreSQL at {place} offers no TLS, which sslmode={address.parameter('sslmode')} asks for. "
            "Turn it on there (ssl = on), or use sslmode=prefer where the network can be trusted."
        )
    if isinstance(error, asyncpg.PostgresError):
        return _describe_refusal(error, place)
    if isinstance(error, ValueError):
        return f"the address of PostgreSQL at {place} cannot be used: {' '.join(str(error).split())}."
    return None


def _describe_refusal(error: asyncpg.PostgresError, place: str) -> str | None:
    if isinstance(error, asyncpg.ProtocolViolationError):
        if not any(text in str(error) for text in _POOLER_REFUSED):
            return None
        is_parameter = "startup parameter" in str(error)
        way_out = " Leave it out, and set it for the role: ALTER ROLE ... SET." if is_parameter else ""
        return f"the pooler at {place} refused the login: {error}.{way_out}"
    if isinstance(error, LOGIN_REFUSED) or str(error.sqlstate)[:2] not in _PARAMETER_REFUSED:
        return None
    return f"PostgreSQL at {place} refused a parameter of the URL: {error}."


def find_unusable_file(address: Address) -> str | None:
    """Name the first file of an address that cannot be read or is not what it should be. Blocks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    checks: dict[str, Callable[[str], object]] = {
        "sslrootcert": context.load_verify_locations,
        "sslcrl": context.load_verify_locations,
        "sslkey": lambda path: Path(path).read_bytes(),
        "sslcert": lambda path: context.load_cert_chain(
            path, address.parameter("sslkey"), lambda: address.parameter("sslpassword") or ""
        ),
    }
    for name, check in checks.items():
        path = address.parameter(name)
        try:
            if path is not None:
                check(path)
        except OSError as error:
            return f"the file of {name}, {path}, cannot be used: {error.strerror or error}."
    return None
