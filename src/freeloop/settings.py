"""Every setting, once: ``FREELOOP_*`` variables, a ``.env`` file and flags, in that rising order.

Frozen, validated at the start, passed in as plain values. It imports ``errors`` and ``source`` only.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from freeloop.errors import SettingsError
from freeloop.source import OPTIONS, Source

PREFIX: Final = "FREELOOP_"
_MASK: Final = "********"
# What may hold a password: not shown where it is wrong, since then its parts are not known.
_SECRETS: Final = frozenset({"token", "database_url", "database_direct_url", "database_read_url", "sources"})


def _none(value: object) -> object:
    """Read the word 'none' as no limit."""
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def _read_sources(value: object) -> object:
    """Read ``name=url,name=url``, or a JSON object of URLs and options by name."""
    if isinstance(value, str):
        value = _read_json(value) if value.startswith("{") else _read_pairs(value)
    if not isinstance(value, Mapping):
        return value
    return {name: {"url": said} if isinstance(said, str) else said for name, said in value.items()}


def _read_pairs(value: str) -> dict[str, str]:
    pairs = [pair.strip().partition("=") for pair in value.split(",") if pair.strip()]
    if any(not name or not url for name, _, url in pairs):
        raise ValueError("each source is name=url")
    return {name.strip(): url.strip() for name, _, url in pairs}


def _read_json(value: str) -> object:
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON at character {error.pos}") from None  # its own text shows what is there


def _reasons(value: object) -> object:
    """Read ``file.py:function=reason; file.py:function=reason``."""
    if not isinstance(value, str):
        return value
    entries = [entry.strip().partition("=") for entry in value.split(";") if entry.strip()]
    if any(":" not in place or not reason.strip() for place, _, reason in entries):
        raise ValueError("each entry is file.py:function=reason")
    return {place.strip(): reason.strip() for place, _, reason in entries}


def _default_data_dir() -> Path:
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # The embedded server runs as an unprivileged user there, who cannot enter root's home.
        return Path("/var/lib/freeloop")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "freeloop"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "freeloop"


def _default_runtime_dir() -> Path:
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/run/freeloop")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime, "freeloop")
    # Whose it is and who may enter is looked at before it is used: see freeloop.inspection.folder.
    return Path(tempfile.gettempdir(), f"freeloop-{getattr(os, 'getuid', int)()}")


def _setting(  # Pydantic's Field is typed in the same way
    default: Any,  # noqa: ANN401 - as above
    says: str,
    allowed: str,
    *,
    unit: str = "",
    **bounds: Any,  # noqa: ANN401 - as above
) -> Any:  # noqa: ANN401 - as above
    extra: JsonDict = {"allowed": allowed, "unit": unit}
    if callable(default):
        return Field(default_factory=default, description=says, json_schema_extra=extra, **bounds)
    return Field(default=default, description=says, json_schema_extra=extra, **bounds)


NonePath = Annotated[Path | None, BeforeValidator(_none)]
NoneFloat = Annotated[float | None, BeforeValidator(_none)]


class Settings(BaseSettings):
    """All settings of the service; see each field's description.

    Build it with :func:`load_settings`, which turns mistakes into readable lines.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        str_strip_whitespace=True,
    )

    host: str = _setting("127.0.0.1", "Address to listen on.", "an IP address or a host name", min_length=1)
    port: int = _setting(8000, "Port to listen on.", "0 to 65535; 0 takes a free one", ge=0, le=65535)
    token: SecretStr | None = _setting(
        None,
        "Bearer token for every write and for what shows internals; needed on any host but loopback.",
        "16 characters or more",
        min_length=16,
    )
    insecure: bool = _setting(False, "Serve on other hosts than loopback without a token.", "true or false")
    data_dir: Path = _setting(
        _default_data_dir, "Folder of the embedded PostgreSQL.", "a folder that can be made or written to"
    )
    runtime_dir: NonePath = _setting(
        _default_runtime_dir,
        "Folder of the sockets that freeloop ps asks, closed to other users.",
        "a folder with a short path, or 'none' for no sockets",
    )
    database_url: SecretStr | None = _setting(
        None,
        "PostgreSQL 14 or newer; empty runs the embedded one.",
        "postgresql://user:password@host:port/database, or empty",
    )
    database_pooler: Literal["none", "session", "transaction"] = _setting(
        "none",
        "What stands at FREELOOP_DATABASE_URL in front of PostgreSQL: PgBouncer's pool_mode.",
        "none, session or transaction",
    )
    database_direct_url: SecretStr | None = _setting(
        None,
        "PostgreSQL itself, past a pooler, for LISTEN and migrations; needed in transaction mode.",
        "postgresql://user:password@host:port/database, or empty",
    )
    database_read_url: SecretStr | None = _setting(
        None,
        "Streaming replicas, one a host, that answer db.read; empty lets the primary do so.",
        "postgresql://user:password@host:port,host:port/database, or empty",
    )
    database_pool_size: int = _setting(
        10, "Connections of this process.", "1 to 1000", unit="connections", ge=1, le=1000
    )
    database_reserve: int = _setting(
        5,
        "Connections that are left to others: psql, a backup, monitoring, migrations.",
        "0 to 1000",
        unit="connections",
        ge=0,
        le=1000,
    )
    replicas: int = _setting(
        1,
        "Machines or containers that run this app at once, those of a rolling deploy included.",
        "1 to 10000",
        ge=1,
        le=10_000,
    )
    database_acquire_timeout: float = _setting(
        2.0, "How long a request waits for a connection.", "over 0, at most 300", unit="s", gt=0, le=300
    )
    database_statement_timeout: NoneFloat = _setting(
        30.0,
        "How long a statement may run.",
        "over 0, at most 86400, or 'none'",
        unit="s",
        gt=0,
        le=86400,
    )
    start_timeout: float = _setting(
        30.0,
        "How long the start waits for the database.",
        "over 0, at most 3600",
        unit="s",
        gt=0,
        le=3600,
    )
    deadline: NoneFloat = _setting(
        30.0,
        "How long a request may take where its route says nothing else.",
        "over 0, at most 86400, or 'none'",
        unit="s",
        gt=0,
        le=86400,
    )
    deadline_header: str | None = _setting(
        None,
        "The request header whose seconds may shorten the deadline; empty trusts none.",
        "a header's name, such as X-Request-Timeout",
        pattern=r"^[A-Za-z0-9-]+$",
    )
    cleanup_timeout: float = _setting(
        5.0,
        "How long the clean-up of a cancelled request may take before it is cancelled again.",
        "over 0, at most 300",
        unit="s",
        gt=0,
        le=300,
    )
    max_concurrency: int = _setting(
        20_000,
        "Requests of one route that run at once at most, overloaded or not.",
        "1 to 1000000",
        unit="requests",
        ge=1,
        le=1_000_000,
    )
    server_timing: bool = _setting(
        False, "Say in each answer where the time went (Server-Timing).", "true or false"
    )
    readiness_path: str = _setting(
        "/readyz", "The path that answers 503 while the service drains.", "a path", pattern="^/"
    )
    drain_delay: float = _setting(
        1.0,
        "How long requests are still taken after SIGTERM, for load balancers to turn away.",
        "0 to 300",
        unit="s",
        ge=0,
        le=300,
    )
    shutdown_timeout: float = _setting(
        9.0,
        "From the signal to the end of the process, at most; what runs may use two thirds of it.",
        "0.1 to 3600",
        unit="s",
        ge=0.1,
        le=3600,
    )
    sources: Annotated[dict[str, dict[str, Any]], NoDecode, BeforeValidator(_read_sources)] = _setting(
        dict,
        "External APIs that /fetch-data may call, the first by default; empty runs the bundled sample.",
        "name=url,name=url with http or https URLs (a comma in a URL is written %2C), or "
        '{"name": {"url": "…", "timeout": 5}}',
    )
    fetch_timeout: float = _setting(
        10.0, "How long one call to an external API may take.", "over 0, at most 300", unit="s", gt=0, le=300
    )
    fetch_max_body: int = _setting(
        10 * 2**20,
        "The largest answer of an external API.",
        "1 to 1073741824",
        unit="bytes",
        ge=1,
        le=2**30,
    )
    max_body: int = _setting(
        2**20,
        "The largest request body of the service; an app of yours says `max_body=`.",
        "1 to 1073741824",
        unit="bytes",
        ge=1,
        le=2**30,
    )
    threads: int = _setting(
        40,
        "Sync calls that run at once: /sync-task, and run_sync of the kit.",
        "1 to 1000",
        unit="threads",
        ge=1,
        le=1000,
    )
    route_threads: int = _setting(
        40,
        "Sync ('def') routes and dependencies that run at once.",
        "1 to 1000",
        unit="threads",
        ge=1,
        le=1000,
    )
    watch: bool = _setting(True, "Find what blocks the event loop.", "true or false")
    watch_threshold: float = _setting(
        0.1,
        "From how long on the event loop counts as blocked.",
        "0.02 to 60",
        unit="s",
        ge=0.02,
        le=60,
    )
    watch_backstop: bool = _setting(
        True,
        "Use SIGALRM and a timer on the CPU clock of the loop's thread for what holds the GIL.",
        "true or false",
    )
    watch_ignore: Annotated[dict[str, str], NoDecode, BeforeValidator(_reasons)] = _setting(
        dict,
        "Functions that may block the event loop, each with the reason.",
        "file.py:function=reason; file.py:function=reason",
    )
    changes_retention: float = _setting(
        86400.0,
        "How long the change log and idempotency keys are kept.",
        "60 to 31536000",
        unit="s",
        ge=60,
        le=31536000,
    )
    worker: Literal["inline", "none"] = _setting(
        "inline",
        "Whether this process runs tasks beside its requests; 'freeloop worker' runs them alone.",
        "inline or none",
    )
    worker_concurrency: int = _setting(
        100,
        "Tasks that a worker runs at once; each plain 'def' one has a thread.",
        "1 to 10000",
        unit="tasks",
        ge=1,
        le=10_000,
    )
    worker_heartbeat_timeout: float = _setting(
        4.0,
        "How long a worker may give no sign of life before others take its tasks over.",
        "0.5 to 300",
        unit="s",
        ge=0.5,
        le=300,
    )
    tasks_retention: float = _setting(
        604_800.0,
        "How long tasks are kept after their end, and their keys with them.",
        "60 to 315360000",
        unit="s",
        ge=60,
        le=315_360_000,
    )
    log_format: Literal["auto", "json", "console"] = _setting(
        "auto",
        "How log records look; auto is console on a terminal, else json.",
        "auto, json or console",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "The least severe records that are logged.", "debug, info, warning or error"
    )
    access_log: bool = _setting(True, "Log one record a request.", "true or false")

    @property
    def bearer_token(self) -> str | None:
        """``FREELOOP_TOKEN`` in clear text, to compare with what a request bears; None: none is set."""
        return None if self.token is None else self.token.get_secret_value()

    @field_validator("database_url", "database_direct_url", "database_read_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        # Without urlsplit: its errors quote the password.
        if value is not None and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("not a postgresql:// URL")
        return value

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in value.items():
            for option in options:
                if option not in OPTIONS:
                    raise ValueError(f"source '{name}' has no option '{option}'; it has {', '.join(OPTIONS)}")
            try:
                url = Source(**options).url
            except ValueError as error:
                raise ValueError(f"source '{name}': {error}") from None
            if not url:
                raise ValueError(f"source '{name}' has no url")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags over the ``.env`` file over the environment."""
        del settings_cls, file_secret_settings
        return init_settings, dotenv_settings, env_settings


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Read and validate all settings, for a service whose writes need a token where others reach it.

    Args:
        flags: Values of command-line flags by field name; None means not given.

    Raises:
        SettingsError: As of :func:`read_settings`; or the host is not loopback, and there is no token.
    """
    settings = read_settings(flags)
    if not is_loopback(settings.host) and not (settings.token or settings.insecure):
        raise SettingsError(
            [
                (
                    f"{PREFIX}HOST={settings.host!r}: other machines could write here. Set {PREFIX}TOKEN "
                    "(16 characters or more), or say --insecure."
                )
            ]
        )
    return settings


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    return host in {"127.0.0.1", "localhost", "::1"}


def read_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Read and validate all settings, for an app that looks after itself.

    Args:
        flags: Values of command-line flags by field name; None means not given.

    Raises:
        SettingsError: One readable line per mistake, each naming the setting, the value and what is allowed.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        origins = find_origins(given)
        raise SettingsError([_describe(mistake, origins) for mistake in error.errors()]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f".env: expected a readable UTF-8 file; {error}"]) from None
    return settings


def find_origins(flags: Mapping[str, Any]) -> dict[str, str]:
    """Tell where each setting's value comes from: ``flag``, ``.env``, ``environment``; absent: default."""
    origins: dict[str, str] = {}
    environment = {name.lower() for name, value in os.environ.items() if value}
    dotenv = {name.lower() for name, value in DotEnvSettingsSource(Settings).env_vars.items() if value}
    for name in Settings.model_fields:
        variable = (PREFIX + name).lower()
        if name in flags:
            origins[name] = "flag"
        elif variable in dotenv:
            origins[name] = ".env"
        elif variable in environment:
            origins[name] = "environment"
    return origins


def find_unknown() -> list[str]:
    """Return one line per ``FREELOOP_*`` variable that is no setting, with the nearest name."""
    known = {(PREFIX + name).upper() for name in Settings.model_fields}
    given = {name.upper() for name in os.environ} | {
        name.upper() for name in DotEnvSettingsSource(Settings).env_vars
    }
    lines = []
    for name in sorted(given - known):
        if name.startswith(PREFIX):
            near = difflib.get_close_matches(name, known, n=1)
            lines.append(f"{name} is not a setting" + (f"; is {near[0]} meant?" if near else ""))
    return lines


def display(name: str, value: object) -> str:
    """Return a setting's value as it may be shown: secrets masked, passwords in URLs masked."""
    if value is None:
        return "" if name in _SECRETS else "none"
    if isinstance(value, SecretStr):
        if not name.endswith("_url"):
            return _MASK
        return mask_url(value.get_secret_value())
    if isinstance(value, dict):
        return _display_entries(name, value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _display_entries(name: str, entries: Mapping[str, Any]) -> str:
    if name == "sources":
        return ",".join(_display_source(key, **options) for key, options in entries.items())
    return "; ".join(f"{key}={value}" for key, value in entries.items())


def _display_source(name: str, *, url: str, **options: object) -> str:
    said = ", ".join(f"{option}={value}" for option, value in options.items())
    return f"{name}={mask_url(url)}" + (f" ({said})" if said else "")


def mask_url(url: str) -> str:
    """Return ``url`` without its user information and its query, which may hold secrets."""
    scheme, slashes, rest = url.partition("://")
    # From the last @: a password that is not percent-encoded may hold any of the characters before it.
    place, query, _ = rest.rpartition("@")[2].partition("#")[0].partition("?")
    return f"{scheme}{slashes}{place}{'?' + _MASK if query else ''}"


def facts(field: FieldInfo) -> tuple[str, str]:
    """Return a setting's unit and what is allowed."""
    extra = field.json_schema_extra
    if not isinstance(extra, dict):
        raise TypeError("every setting is declared through _setting")
    return str(extra["unit"]), str(extra["allowed"])


def _describe(mistake: ErrorDetails, origins: Mapping[str, str]) -> str:
    name = str(mistake["loc"][0])
    _, allowed = facts(Settings.model_fields[name])
    came = mistake["input"]
    shown = _MASK if name in _SECRETS else repr(came)
    origin = origins.get(name, "default")
    reason = f" ({mistake['ctx']['error']})" if mistake["type"] == "value_error" else ""
    return f"{PREFIX}{name.upper()}={shown} (from {origin}): expected {allowed}{reason}"
