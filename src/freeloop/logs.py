"""Structured logs that never block the loop: a bounded buffer, written by a thread of its own.

Any record of the standard library's ``logging`` (uvicorn's and asyncpg's too) becomes one JSON line, or one
coloured line on a terminal, with the id of the request that it belongs to.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from freeloop.records import RequestRecord
from freeloop.scope import current_scope

_BATCH: Final = 100
# What every record has, and what another handler's formatter leaves on it; all else the caller has added.
_STANDARD: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
access_logger = logging.getLogger("freeloop.access")


class LogWriter(logging.Handler):
    """Takes records on any thread at the cost of an append; formats and writes them on its own.

    A terminal or a pipe that does not read would otherwise stop the loop at a ``write``. When the buffer is
    full, new records are dropped, counted, and the count is logged.

    Args:
        stream: Where lines go.
        capacity: Records that wait at most.
    """

    def __init__(self, stream: TextIO, *, capacity: int = 10_000) -> None:
        super().__init__()
        self._stream = stream
        self._waiting: deque[logging.LogRecord] = deque()
        self._capacity = capacity
        self.dropped = 0
        self._told = 0
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="freeloop-logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record together with the request id that is current now."""
        if not hasattr(record, "request_id") and (scope := current_scope()) is not None:
            record.request_id = scope.id
        if len(self._waiting) >= self._capacity:
            # The newest is dropped, not the oldest: the writer alone takes from the other end.
            self.dropped += 1
        else:
            self._waiting.append(record)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write what waits, for at most two seconds, and end the thread."""
        self._closing = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(2.0)
        super().close()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._waiting:
                self._write_batch()
            if self._closing:
                return

    def _write_batch(self) -> None:
        count = min(_BATCH, len(self._waiting))
        lines = [self._render(self._waiting.popleft()) for _ in range(count)]
        dropped = self.dropped
        if dropped > self._told:
            lines.append(self._render(_dropped_record(dropped - self._told)))
        try:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # The reader of our output has gone, or the stream is closed: there is nobody left to tell.
            return
        self._told = dropped

    def _render(self, record: logging.LogRecord) -> str:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - one odd record must not end the logging of all others
            line = self.format(_odd_record(record, error))
        # What a caller logs may hold lone surrogates, and the stream may not be UTF-8.
        encoding = self._stream.encoding or "utf-8"
        return line.encode(encoding, "backslashreplace").decode(encoding)


class JsonFormatter(logging.Formatter):
    """Makes one JSON object of a record: event, level, logger, time, and what the caller has added.

    Each request writes a line, so it costs what the line needs and no more.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        event: dict[str, Any] = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "time": _tell_time(record.created),
        }
        event.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            event["stack"] = self.formatStack(record.stack_info)
        return _dump(event)


def configure_logs(
    *,
    format: Literal["auto", "json", "console"],  # noqa: A002 - named as the setting is
    level: str,
    stream: TextIO | None = None,
) -> LogWriter:
    """Send every log record of the process through one :class:`LogWriter` and return it.

    Args:
        format: ``json``: one object a line; ``console``: for people; ``auto``: console on a terminal.
        level: The least severe level that is logged.
        stream: Where lines go; standard error, if None.
    """
    stream = stream or sys.stderr
    as_json = format == "json" or (format == "auto" and not stream.isatty())
    writer = LogWriter(stream)
    writer.setFormatter(JsonFormatter() if as_json else _make_console_formatter(colors=stream.isatty()))
    root = logging.getLogger()
    root.handlers = [writer]
    root.setLevel(level.upper())
    # What uvicorn says of its start and end, our server says too.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, root.level))
    return writer


def log_request(record: RequestRecord) -> None:
    """Write one access record."""
    if access_logger.isEnabledFor(logging.INFO):
        line = logging.LogRecord("freeloop.access", logging.INFO, "", 0, "request", None, None)
        line.__dict__.update(
            request_id=record.request_id,
            method=record.method,
            path=record.path,
            route=record.route,
            status=record.status,
            duration_ms=round(record.duration * 1000, 2),
            client=record.client,
        )
        if record.cause:
            line.__dict__["cancelled_by"] = record.cause
        access_logger.handle(line)


def _make_console_formatter(*, colors: bool) -> logging.Formatter:
    """Return what makes a line for people of a record."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            _add_time,
            structlog.stdlib.ExtraAdder(),
            _remove_formatted,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.dev.ConsoleRenderer(colors=colors),
        ],
    )


def _tell_time(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _add_time(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    event["time"] = _tell_time(record.created if record else time.time())
    return event


def _remove_formatted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    # Another handler's formatter leaves these on the record; they are no extra of the caller's.
    event.pop("message", None)
    event.pop("asctime", None)
    return event


def _dump(event: dict[str, Any]) -> str:
    try:
        return orjson.dumps(event, default=repr).decode()
    except TypeError:
        # orjson refuses lone surrogates and integers beyond 64 bits; the standard library escapes them.
        return json.dumps(event, default=repr)


def _odd_record(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    return logging.LogRecord(
        record.name, record.levelno, "", 0, "a record could not be written: %r", (error,), None
    )


def _dropped_record(count: int) -> logging.LogRecord:
    return logging.LogRecord(
        "freeloop.logs", logging.WARNING, "", 0, "%d log records were dropped", (count,), None
    )
