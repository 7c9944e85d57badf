"""OpenTelemetry spans of statements and transactions, where the app has set a tracer provider; else nothing.

Nothing of OpenTelemetry is imported here: where nobody else has, there is no provider. Names follow its
semantic conventions for PostgreSQL (https://opentelemetry.io/docs/specs/semconv/db/postgresql/).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import asyncpg

from freeloop.database.address import Address
from freeloop.database.statements import Statement

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanKind, Tracer

_Attributes: TypeAlias = dict[str, str | int]

_SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
_LOOK: Final = 1.0  # s between two looks for a provider: an app may set one after it has opened its database
_NOTHING: Final = nullcontext()
_DEFAULT_PORT: Final = 5432
_PARAMETER: Final = re.compile(r"\$[0-9]")
_KEYWORD: Final = re.compile(r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*([A-Za-z]+)", re.DOTALL)
_LONGEST: Final = 4096  # characters of a statement that a span shows
# String constants in all of PostgreSQL's spellings, and numbers; names in double quotes stay. Comments are
# recognized, since a quote in one would turn what is text and what is constant around.
_LITERAL: Final = re.compile(
    r"""
    (?P<name> "(?:[^"]|"")*(?:"|$) )
    | --[^\n]* | /\*.*?(?:\*/|$)
    | \b[eE]'(?:[^'\\]|\\.|'')*(?:'|$)
    | (?:\b(?:[bBxXnN]|[uU]&))? '(?:[^']|'')*(?:'|$)
    | \$(?P<tag>[A-Za-z_]\w*|)\$ .*? (?:\$(?P=tag)\$|$)
    | (?<![\w$.]) (?:\d[\w.]*|\.\d[\w.]*)
    """,
    re.DOTALL | re.VERBOSE,
)


class Spans:
    """Makes the spans of one database.

    Args:
        address: Where it is; credentials are no part of any span.
    """

    def __init__(self, address: Address) -> None:
        self._attributes = describe_server(address)
        self._tracer: Tracer | None = None
        self._next_look = 0.0

    def statement(self, sql: str) -> AbstractContextManager[object]:
        """Make the span of a statement, which is over at the end of the block.

        It has the statement's text and never its arguments; of a text without parameters, no constants.
        """
        if self._tracer is None and self._find_tracer() is None:
            return _NOTHING
        shown = describe_statement(sql[:_LONGEST])
        summary = sql.name if isinstance(sql, Statement) else shown.keyword
        return self._begin(summary, {"db.query.text": shown.text, "db.query.summary": summary})

    def operation(self, name: str, table: str | None = None) -> AbstractContextManager[object]:
        """Make the span of what has no text of the caller's: ``BEGIN``, ``COMMIT``, ``COPY`` of a table."""
        if self._tracer is None and self._find_tracer() is None:
            return _NOTHING
        attributes: _Attributes = {"db.operation.name": name}
        if table is None:
            return self._begin(name, attributes)
        return self._begin(f"{name} {table}", {**attributes, "db.collection.name": table})

    def transaction(self) -> AbstractContextManager[object]:
        """Make the span of a whole transaction, to which all that happens in the block belongs."""
        if self._tracer is None and self._find_tracer() is None:
            return _NOTHING
        return self._enclose()

    @contextmanager
    def _enclose(self) -> Iterator[None]:
        api, context = _api(), sys.modules["opentelemetry.context"]
        running = self._begin("transaction", {}, api.SpanKind.INTERNAL)
        current = api.set_span_in_context(running.span)
        token = context.attach(current)
        try:
            with running:
                yield
        finally:
            # A block that was given up, as that of a generator, may end in the context of another task.
            if context.get_current() is current:
                context.detach(token)

    def _begin(self, name: str, attributes: _Attributes, kind: SpanKind | None = None) -> _Running:
        assert self._tracer is not None  # noqa: S101 - each caller has looked for it
        return _Running(
            self._tracer.start_span(
                name, kind=kind or _api().SpanKind.CLIENT, attributes={**self._attributes, **attributes}
            )
        )

    def _find_tracer(self) -> Tracer | None:
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._next_look = now + _LOOK
        api = sys.modules.get("opentelemetry.trace")
        if api is not None:
            provider = api.get_tracer_provider()
            if not isinstance(provider, api.ProxyTracerProvider | api.NoOpTracerProvider):
                self._tracer = provider.get_tracer("freeloop", schema_url=_SCHEMA)
        return self._tracer


class _Running:
    """A span that runs; a context manager that ends it."""

    __slots__ = ("span",)

    def __init__(self, span: Span) -> None:
        self.span = span

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # Without the message, which may quote values.
            self.span.set_status(_api().StatusCode.ERROR)
            state = error.sqlstate if isinstance(error, asyncpg.PostgresError) else None
            if state is not None:
                self.span.set_attribute("db.response.status_code", state)
            self.span.set_attribute("error.type", state or kind.__qualname__)
        self.span.end()


class Shown(NamedTuple):
    """What a span shows of a statement.

    Attributes:
        text: Its text; without parameters, with ``?`` in place of each constant and comment.
        keyword: Its first word in capitals, such as ``SELECT``.
    """

    text: str
    keyword: str


@lru_cache(maxsize=1024)
def describe_statement(sql: str) -> Shown:
    """Return what a span shows of a statement.

    Who writes parameters has taken the values out of the text. In any other text a constant may be one.
    """
    word = _KEYWORD.match(sql)
    masked = _LITERAL.sub(lambda found: found["name"] or "?", sql)
    text = str(sql) if _PARAMETER.search(masked) else masked  # '$5' in a constant is no parameter
    return Shown(text, word[1].upper() if word else "SQL")


def describe_server(address: Address) -> _Attributes:
    """Return the attributes that say which server and database it is."""
    attempts = address.attempts()
    attributes: _Attributes = {"db.system.name": "postgresql"}
    if database := attempts[0].get("database"):
        attributes["db.namespace"] = database
    if hosts := dict.fromkeys(each["host"] for each in attempts if each.get("host")):
        attributes["server.address"] = ",".join(hosts)
        ports = {each.get("port") or _DEFAULT_PORT for each in attempts}
        if len(ports) == 1 and ports != {_DEFAULT_PORT}:
            attributes["server.port"] = ports.pop()
    return attributes


def _api() -> Any:  # noqa: ANN401 - a module that is not imported here
    api: ModuleType = sys.modules["opentelemetry.trace"]
    return api
