"""One HTTP request on its way through the gate: its scope, and its way out."""

from __future__ import annotations

import io
import math
import time
from typing import Any

from starlette.types import Message, Receive, Send

from freeloop.gate.bulkhead import Bulkhead
from freeloop.gate.declare import AppDefault
from freeloop.gate.disconnect import ReadAhead
from freeloop.ledger import APP, KINDS
from freeloop.scope import Cause, Scope


class Exchange(Scope):
    """The scope of an HTTP request; the server's ``send`` goes through it.

    The request id is added to the answer; the place at the bulkhead is given back as soon as the answer is
    complete, or has begun to stream; neither the deadline nor the client's going ends what an app still does
    after it (background tasks).

    The app's default deadline cannot know how long a download takes: once the answer has begun it is renewed
    with each part that is sent, and it does not hold for server-sent events. A deadline that the route or the
    request names holds for the whole.

    Attributes:
        bulkhead: What the gate keeps for the route.
        status: The HTTP status, None until the response has begun.
        answered: Whether the response is complete.
        streaming: Whether it has begun without saying how long it is.
        events: Whether it is a stream of server-sent events.
        closing: Whether the connection is to be closed behind it.
        timed: Whether the answer shows where the time went.
        queued: Whether it has to wait for a place at the bulkhead.
        admitted: When it was let through; None while it holds no place at the bulkhead.
        cancelled_at: When it was last cancelled.
    """

    __slots__ = (
        "_connection",
        "_renewal",
        "_send",
        "admitted",
        "answered",
        "bulkhead",
        "cancelled_at",
        "closing",
        "events",
        "queued",
        "status",
        "streaming",
        "timed",
    )

    def __init__(
        self,
        request_id: str,
        bulkhead: Bulkhead,
        default: float | None,
        receive: Receive,
        send: Send,
    ) -> None:
        declared = bulkhead.declaration.deadline
        self._renewal: float | None = None
        if isinstance(declared, AppDefault):
            declared = self._renewal = default
        super().__init__(request_id, kind="http", route=bulkhead.template, seconds=declared)
        self.critical = bulkhead.admission is None
        self.bulkhead = bulkhead
        self.status: int | None = None
        self.answered = False
        self.streaming = False
        self.events = False
        self.closing = False
        self.timed = False
        self.admitted: float | None = None
        self.queued = False
        self.cancelled_at = 0.0
        self._send = send
        # uvicorn's object for the request; it knows first that the client has gone, and to ask it takes
        # neither a message from the app nor a task.
        self._connection = getattr(receive, "__self__", None)

    async def send(self, message: Message) -> None:
        """Hand a message of the app to the server."""
        if message["type"] == "http.response.start":
            self._begin(message)
            await self._send(message)
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            await self._send(message)
            self.answered = True
            self.release(self._latency())
        else:
            if self._renewal is not None:
                self.deadline = time.monotonic() + self._renewal
            await self._send(message)

    def set_deadline(self, seconds: float | None) -> None:
        """Give the whole rest of the request so many seconds from now, its answer included."""
        super().set_deadline(seconds)
        self._renewal = None

    def shorten(self, seconds: float) -> None:
        """Let the whole request take so many seconds since it began, or less where that was its deadline."""
        until = self.started + seconds
        self.deadline = until if self.deadline is None else min(until, self.deadline)
        self._renewal = None

    def overdue(self, now: float) -> Cause | None:
        """Return why it must end now; None: it may go on."""
        if self.answered:
            return None
        if self.deadline is not None and now >= self.deadline:
            return "deadline"
        if not self.bulkhead.declaration.finish and getattr(self._connection, "disconnected", False):
            return "disconnect"
        return None

    def release(self, latency: float | None) -> None:
        """Give the place at the bulkhead back; idempotent.

        Args:
            latency: How long the request took, in seconds; None where that says nothing about the load.
        """
        admission = self.bulkhead.admission
        if self.admitted is not None and admission is not None:
            self.admitted = None
            self.bulkhead.leave(admission, time.monotonic(), latency)

    @property
    def unsettled(self) -> bool:
        """Whether it was cancelled, or has child tasks."""
        return self.cause is not None or bool(self._children)

    def close(self) -> None:
        """Give back what the end of the request leaves borrowed."""
        self.leave()
        if self.admitted is not None:
            # Cut by its deadline or left by its client, it says how long it took at least.
            elapsed = time.monotonic() - self.admitted
            slow = elapsed > (self.bulkhead.baseline or math.inf)
            self.release(elapsed if slow and self.cause in {"deadline", "disconnect"} else None)
        if isinstance(self._connection, ReadAhead):
            self._connection.close()

    def describe(self) -> str:
        """Return where its task stands, as the lines of a stack."""
        if self._task is None:
            return ""
        lines = io.StringIO()
        self._task.print_stack(limit=20, file=lines)
        return lines.getvalue()

    def _begin(self, message: Message) -> None:
        self.status = message["status"]
        headers = list(message.get("headers", ()))
        sized = False
        for name, value in headers:
            if name == b"content-length":
                sized = True
            elif name == b"content-type":
                self.events = value.startswith(b"text/event-stream")
        if self.events and self._renewal is not None:
            self.deadline = self._renewal = None
        if not sized and self.status >= 200 and self.status not in {204, 304}:
            self.streaming = True
            self.release(self._latency())
        headers.append((b"x-request-id", self.id.encode("ascii")))
        if self.closing:
            headers.append((b"connection", b"close"))
        if self.timed:
            headers.append((b"server-timing", _render_times(self.times())))
        message["headers"] = headers

    def _latency(self) -> float | None:
        if self.admitted is None or self.status is None or self.status >= 400:
            return None
        return time.monotonic() - self.admitted


def _render_times(times: dict[str, float]) -> bytes:
    """Render a Server-Timing header (W3C Server Timing): milliseconds by class."""
    kinds: list[Any] = [kind for kind in KINDS if kind in times or kind == APP]
    return ", ".join(f"{kind};dur={times[kind] * 1000:.1f}" for kind in kinds).encode("ascii")
