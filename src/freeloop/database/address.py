"""Where PostgreSQL listens, and who keeps it running.

Both are plain descriptions: this module opens nothing, so the embedded server, the pool and the
migrations can share it without knowing one another.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol, TypeAlias
from urllib.parse import quote, unquote, urlencode

from freeloop.errors import SettingsError

FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
"""The parameters of a URL that name files."""

Pooler: TypeAlias = Literal["none", "session", "transaction"]
"""What stands in front of PostgreSQL: a pooler that lends a connection for a session or a transaction."""

_PORT: Final = 5432
_SERVER: Final = re.compile(
    r"(?:\[(?P<six>[^\[\]]+)\]|(?P<name>/[^:\[\]]*|[^/:\[\]]+))(?::(?P<port>[0-9]{1,5}))?"
)
_TLS_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SESSIONS: Final = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")
# Parameters of libpq that asyncpg does not know: it would hand them to the server, which refuses the login.
_UNSUPPORTED: Final = (
    *("channel_binding", "connect_timeout", "fallback_application_name", "gssdelegation", "gssencmode"),
    *("hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval"),
    *("load_balance_hosts", "replication", "require_auth", "requirepeer", "requiressl", "sslcertmode"),
    *("sslcompression", "sslcrldir", "sslsni", "tcp_user_timeout"),
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where PostgreSQL listens.

    Either a ``dsn`` or the single fields; where both are given, a field wins over the part of the
    DSN it names. A ``host`` that starts with ``/`` is the folder of a Unix socket.

    Args:
        dsn: ``postgresql://user:password@host:port/database?sslmode=verify-full``, or None for the embedded
            server. Several hosts are separated by commas and tried in that order; an IPv6 address is written
            in brackets; ``?host=/folder`` names a socket. As in libpq, a parameter after the ``?`` wins over
            the same thing before it.
        host: host name, IP address or socket folder.
        port: TCP port (or the number in the socket's name).
        user: role to log in as.
        database: database to open.
        password: never shown by ``repr``.
        pooler: what stands there in front of PostgreSQL, such as PgBouncer with its ``pool_mode``; whatever
            answers logins in PostgreSQL's place and keeps sessions apart counts as ``session``.
        direct: PostgreSQL itself, for what needs a session (LISTEN, migrations); None: the same address.
        setting: the setting that the DSN came from, for messages.

    Raises:
        SettingsError: The DSN is malformed, or ``direct`` leads to the same place. The message never shows a
            part that may be a password.
    """

    dsn: str | None = field(default=None, repr=False)
    host: str | None = None
    port: int | None = None
    user: str | None = None
    database: str | None = None
    password: str | None = field(default=None, repr=False)
    pooler: Pooler = "none"
    direct: Address | None = None
    setting: str = "FREELOOP_DATABASE_URL"

    def __post_init__(self) -> None:
        """Refuse a DSN that would be misread, before anything fails with a text that quotes it."""
        try:
            self._parts()
        except _Malformed as error:
            expected = "Expected postgresql://user:password@host:port/database"
            raise SettingsError([f"{self.setting}: {error}. {expected}"]) from None
        if self.direct is not None and self.direct.place == self.place:
            raise SettingsError(
                [f"{self.direct.setting}: expected PostgreSQL itself, but it leads where {self.setting} does"]
            )

    def past_pooler(self, purpose: str) -> Address:
        """Return where a session is one's own from login to logout.

        Args:
            purpose: what needs one, for the message.

        Raises:
            SettingsError: A pooler in transaction mode stands in between, and there is no way around it.
        """
        if self.direct is not None:
            return self.direct
        if self.pooler == "transaction":
            raise SettingsError(
                [
                    (
                        f"FREELOOP_DATABASE_DIRECT_URL: {purpose} need a session of their own, which the "
                        f"pooler of {self.setting} does not give. Expected PostgreSQL itself, as "
                        "postgresql://user:password@host:port/database"
                    )
                ]
            )
        return self

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

    def split(self) -> tuple[Address, ...]:
        """Return one address for each server that this one names."""
        return tuple(
            replace(self, host=host, port=port) for host, port in self._parts().servers or ((None, None),)
        )

    def attempts(self) -> list[dict[str, Any]]:
        """Return the arguments of ``asyncpg.connect`` for one server after the other, in their order.

        asyncpg tries several servers itself, but within one time limit: the first one that says nothing
        would use it up.
        """
        if self.dsn is None:
            return [self.arguments()]
        parts = self._parts()
        common = {
            # What is left in it is without credentials, so no error of asyncpg's can quote them.
            "dsn": f"postgresql://?{urlencode(parts.query, quote_via=quote)}" if parts.query else None,
            "user": parts.user,
            "database": parts.database,
            "password": parts.password,
        }
        passes: tuple[dict[str, str], ...] = ({},)
        if len(parts.servers) > 1 and parts.query.get("target_session_attrs") == "prefer-standby":
            passes = ({"target_session_attrs": "standby"}, {"target_session_attrs": "any"})
        return [
            {name: value for name, value in {**common, **server, **wanted}.items() if value is not None}
            for wanted in passes
            for server in ({"host": host, "port": port} for host, port in parts.servers or ((None, None),))
        ]

    @property
    def place(self) -> str:
        """``host:port/database`` for messages, without user and password."""
        parts = self._parts()
        servers = ",".join(
            f"{f'[{host}]' if host and ':' in host else host or 'localhost'}:{port or _PORT}"
            for host, port in parts.servers or ((None, None),)
        )
        return f"{servers}/{parts.database or ''}".rstrip("/")

    def parameter(self, name: str) -> str | None:
        """Return a parameter of the DSN, such as ``sslmode``, or None where it is not given."""
        return self._parts().query.get(name)

    def _parts(self) -> _Parts:
        url = _Parts() if self.dsn is None else _parse(self.dsn)
        servers = url.servers
        if self.host is not None:
            servers = ((self.host, self.port),)
        elif self.port is not None:
            servers = tuple((host, self.port) for host, _ in servers or ((None, None),))
        return _Parts(
            servers=servers,
            user=self.user or url.user,
            password=self.password or url.password,
            database=self.database or url.database,
            query=url.query,
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    servers: tuple[tuple[str | None, int | None], ...] = ()
    user: str | None = None
    password: str | None = None
    database: str | None = None
    query: dict[str, str] = field(default_factory=dict)


class ServerPort(Protocol):
    """Who keeps the server running that an address names."""

    async def ensure(self) -> None:
        """Make sure that the server runs, or raise within a bounded time.

        Called before a reconnect when a connection was refused. The embedded server restarts its
        keeper here; a server somebody else runs has no such port.
        """


class _Malformed(ValueError):
    """Says what is wrong with a DSN, without quoting it."""


def _parse(url: str) -> _Parts:
    """Take a URL apart as libpq does. By hand: urlsplit drops or moves what a password has unescaped."""
    scheme, _, rest = url.strip().partition("://")
    if scheme not in {"postgresql", "postgres"}:
        raise _Malformed("it must begin with postgresql://")
    # Each of these separates parts of a URL. Left as it is in a password, the parts are others, and the
    # wrong one is shown or sent somewhere.
    if rest.count("@") > 1 or "@" in rest.partition("/")[2] or "@" in rest.partition("?")[2] or "#" in rest:
        raise _Malformed(
            "in a user, password, name or parameter, @ is written %40, / %2F, ? %3F, # %23 and : %3A"
        )
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        raise _Malformed("a % that stands for itself is written %25")
    if re.search(r"[\x00-\x20]|%00", rest):
        raise _Malformed("a space is written %20, and control characters are not allowed")
    rest, _, parameters = rest.partition("?")
    rest, _, database = rest.partition("/")
    login, _, hosts = rest.rpartition("@")
    user, _, password = login.partition(":")
    query = _parse_query(parameters)
    servers = [_parse_server(host) for host in hosts.split(",")] if hosts else []
    if folder_or_host := query.pop("host", ""):
        # Here libpq takes an IPv6 address without brackets.
        servers = [
            _parse_server(f"[{host}]" if host.count(":") > 1 and host[0] not in "[/" else host)
            for host in folder_or_host.split(",")
        ]
    if ports := query.pop("port", ""):
        servers = _with_ports(servers, ports.split(","))
    return _Parts(
        servers=tuple(servers),
        user=query.pop("user", "") or unquote(user) or None,
        password=query.pop("password", "") or unquote(password) or None,
        database=query.pop("dbname", "") or query.pop("database", "") or unquote(database) or None,
        query=query,
    )


def _parse_query(text: str) -> dict[str, str]:
    query = {}
    for pair in filter(None, text.split("&")):
        name, separator, value = pair.partition("=")
        if not separator:
            raise _Malformed("after the ?, expected name=value pairs with & between them")
        if value:
            query[unquote(name)] = unquote(value)
    for name in _UNSUPPORTED:
        if name in query:
            raise _Malformed(f"the parameter {name} is not supported here; remove it")
    for name, allowed in ("sslmode", _TLS_MODES), ("target_session_attrs", _SESSIONS):
        if name in query and query[name] not in allowed:
            raise _Malformed(f"{name} must be one of {', '.join(allowed)}")
    return query


def _parse_server(text: str) -> tuple[str | None, int | None]:
    match = _SERVER.fullmatch(unquote(text))
    port = int(match["port"]) if match and match["port"] else None
    if match and (port is None or 0 < port < 2**16):
        if match["name"]:
            return match["name"], port
        with suppress(ValueError):
            ipaddress.IPv6Address(match["six"])
            return match["six"], port
    raise _Malformed(
        "each host must be a name, an IPv4 address, an IPv6 address in brackets, or the folder of a socket, "
        "with a port of 1 to 65535 or none after a colon"
    )


def _with_ports(
    servers: list[tuple[str | None, int | None]], ports: list[str]
) -> list[tuple[str | None, int | None]]:
    servers = servers or [(None, None)]
    numbers = [int(port) for port in ports if re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 2**16]
    if len(numbers) != len(ports) or len(ports) not in {1, len(servers)}:
        raise _Malformed("port must be a number of 1 to 65535, one for all hosts or one for each")
    numbers *= len(servers) // len(numbers)
    return [(host, port) for (host, _), port in zip(servers, numbers, strict=True)]
