"""Who may look and act: this machine without a token, else whoever has it. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from freeloop.gate.tokens import is_same, read_bearer

COOKIE: Final = "freeloop_console"
LASTS: Final = 12 * 3600
"""Seconds that a session lasts."""

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
_LOOPBACK_NAMES: Final = frozenset({"localhost", *_LOOPBACK})
# Where one of these is there, a proxy has passed the request on, and loopback is the proxy.
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


def is_local(client: str | None, headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from this machine, by a name of it, and through no proxy.

    The name is looked at since a page of anybody's may point a name of its own at 127.0.0.1 (DNS rebinding).
    """
    host = urlsplit(f"//{headers.get('host', '')}").hostname
    return client in _LOOPBACK and host in _LOOPBACK_NAMES and not any(name in headers for name in _FORWARDED)


def is_same_origin(headers: Mapping[str, str], scheme: str) -> bool:
    """Return whether a page of the console itself has sent a request; without an ``Origin``, it has not.

    A proxy may have ended TLS, so an https origin also fits a request that came by http.
    """
    origin = headers.get("origin", "")
    host = headers.get("host", "")
    return bool(host) and origin in {f"{scheme}://{host}", f"https://{host}"}


def check_bearer(headers: Mapping[str, str], token: str) -> bool:
    """Return whether a request bears the token."""
    return is_same(read_bearer(headers.get("authorization")), token)


def sign_session(token: str, now: float) -> str:
    """Return the value of a session's cookie: when it ends, and a proof that we have said so.

    The key is made of the token, so that every worker process knows it, and a new token ends all sessions.
    """
    until = str(int(now) + LASTS)
    return f"{until}.{_prove(token, until)}"


def is_session(value: str, token: str, now: float) -> bool:
    """Return whether a cookie's value is a session of ours that has not ended."""
    until, _, proof = value.partition(".")
    return (
        until.isdecimal()
        and until.isascii()
        and len(until) < 12
        and int(until) > now
        and is_same(proof, _prove(token, until))
    )


def _prove(token: str, until: str) -> str:
    return hmac.new(token.encode(), f"freeloop console {until}".encode(), hashlib.sha256).hexdigest()
