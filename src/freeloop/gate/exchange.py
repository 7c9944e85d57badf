"""One HTTP request on its way through the gate: its scope, and its way out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any, Final, Literal, cast

from starlette.responses import Response
from starlette.types import Message, Receive, Send
from starlette.types import Scope as ASGIScope

from freeloop.gate import refusals
from freeloop.gate.bulkhead import Bulkhead
from freeloop.gate.declare import AppDefault
from freeloop.gate.descent import find_innermost
from freeloop.gate.disconnect import ReadAhead, confirm_gone, is_gone
from freeloop.ledger import APP, KINDS
from freeloop.records import RequestRecord
from freeloop.scope import Cause, Scope, describe_task


class _Nothing:
    """Awaited, it is done at once."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()


class _Unread:
    """The flow of a connection of which nothing is known."""

    read_paused = True


_NOTHING: Final = _Nothing()
_NO_ANSWER: Final = 499  # nginx's code for a request that ended without an answer
_REFUSALS: Final = {"deadline": refusals.deadline_passed, "request": refusals.cancelled_by_hand}


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
        answering: What answers in the app's place, while that cleans up.
        superseded: Whether nothing that the app sends goes through any more.
        flow: Whether its connection is read (``read_paused``): only then its end is seen, and told.
    """

    # Defaults on the class, as in Scope.
    kind = "http"
    status: int | None = None
    answered = False
    streaming = False
    events = False
    closing = False
    timed = False
    admitted: float | None = None
    queued = False
    cancelled_at = 0.0
    superseded = False
    answering: asyncio.Task[None] | None = None
    flow: Any = _Unread
    _transport: Any = None
    _renewal: float | None = None
    _innermost: tuple[asyncio.Task[Any], ...] = ()

    def __init__(
        self,
        request_id: str,
        bulkhead: Bulkhead,
        default: float | None,
        receive: Receive,
        send: Send,
    ) -> None:
        # Not by Scope's, which would cost each request another call.
        self.id = request_id
        self.route = bulkhead.template
        self.started = now = time.monotonic()
        declared = bulkhead.declaration.deadline
        if isinstance(declared, AppDefault):
            declared = self._renewal = default
        self.deadline = None if declared is None else now + declared
        if bulkhead.admission is None:
            self.critical = True
        self.bulkhead = bulkhead
        self._send = send
        # uvicorn's object for the request; it knows first that the client has gone, and to ask it takes
        # neither a message from the app nor a task. Under our server it need not be asked: it tells.
        self._connection = connection = cast("Any", getattr(receive, "__self__", None))
        transport: Any = getattr(connection, "transport", None)
        if hasattr(transport, "watcher"):
            self._transport = transport
            transport.watcher = self
            self.flow = connection.flow

    def send(self, message: Message) -> Awaitable[None]:
        """Hand a message of the app to the server; to be awaited, as any ``send``.

        No coroutine of its own: each one would cost as much as all that is done here.
        """
        if self.superseded:
            return _NOTHING
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            if self._is_held_up():
                return self._send_last(message)
            self.answered = True
            self._release()
        elif self._renewal is not None:
            self.deadline = time.monotonic() + self._renewal
        return self._send(message)

    async def answer(self, response: Response) -> None:
        """Answer in place of the app, while it cleans up."""
        start: Message = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
        self._begin(start)
        await self._send(start)
        await self._send({"type": "http.response.body", "body": response.body})
        self.answered = True

    async def _send_last(self, message: Message) -> None:
        await self._send(message)
        self.answered = True
        self._release()

    def _is_held_up(self) -> bool:
        """Whether the server waits for a client that does not read before it takes a message."""
        flow = getattr(self._connection, "flow", None)
        return flow is None or flow.write_paused

    async def complete(self) -> None:
        """End a stream properly where the app was cancelled before it did."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self.answered = True

    def cancel(self, cause: Cause) -> None:
        """Cancel the app where it stands, and answer in its place where its client still waits.

        The answer does not wait for the app's clean-up, which may take long.

        Middleware of Starlette's kind and streams run the app in anyio's task groups. Those, when they are
        cancelled from outside, cancel again whatever is awaited below them, clean-up included, for as long
        as it takes. The tasks above follow by :meth:`go_on_cancelling`.
        """
        if cause != "disconnect" and self.cause is None and self.status is None:
            refuse = _REFUSALS.get(cause, refusals.cut_at_shutdown)
            self.answering = asyncio.get_running_loop().create_task(self._refuse(refuse))
        self.cancelled_at = time.monotonic()
        # What Starlette makes of a cancelled part (a 500, a proper end of half a stream) is not the truth.
        # Events may end by themselves.
        self.superseded = not (self.events and cause == "shutdown")
        innermost = () if self.cause is not None or self._task is None else find_innermost(self._task)
        if not innermost:
            super().cancel(cause)
            return
        self.cause = cause
        self._innermost = innermost
        for task in innermost:
            task.cancel(cause)

    async def _refuse(self, refuse: Callable[[Scope], Response]) -> None:
        self.assist()
        # Whatever fails here is the connection; the request itself ends by its cancellation.
        with suppress(Exception):
            await self.answer(refuse(self))

    def go_on_cancelling(self) -> None:
        """Cancel the task of the request too, where it goes on after its innermost ones have ended."""
        if self._innermost and self._task is not None and all(task.done() for task in self._innermost):
            self._innermost = ()
            self._task.cancel(self.cause)

    def set_deadline(self, seconds: float | None) -> None:
        """Give the whole rest of the request so many seconds from now, its answer included."""
        super().set_deadline(seconds)
        self._renewal = None

    def shorten(self, seconds: float) -> None:
        """Let the whole request take so many seconds since it began, or less where that was its deadline."""
        until = self.started + seconds
        self.deadline = until if self.deadline is None else min(until, self.deadline)
        self._renewal = None

    def lose(self) -> None:
        """Hear that the connection is lost."""
        if self.cause is None and not self.answered and not self.bulkhead.declaration.finish:
            self.cancel("disconnect")

    def overdue(self, now: float) -> Cause | None:
        """Return why it must end now; None: it may go on."""
        if self.answered:
            return None
        if self.deadline is not None and now >= self.deadline:
            return "deadline"
        if not self.bulkhead.declaration.finish and is_gone(self._connection):
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
        if self.cause is not None:
            self._innermost = ()
            self.answering = None
            if self.cause == "disconnect":
                confirm_gone(self._connection)
        if self.admitted is not None:
            # Cut by its deadline or left by its client, it says how long it took at least.
            elapsed = time.monotonic() - self.admitted
            slow = elapsed > (self.bulkhead.baseline or math.inf)
            self.release(elapsed if slow and self.cause in {"deadline", "disconnect"} else None)
        if self._transport is not None:
            if self._transport.watcher is self:  # and not the next request already
                self._transport.watcher = None
        elif type(self._connection) is ReadAhead:
            self._connection.close()

    def report(self, asgi: ASGIScope) -> RequestRecord:
        """Return the record of the request, which has ended."""
        duration = time.monotonic() - self.started
        client = asgi.get("client")
        return RequestRecord(
            self.id,
            asgi["method"],
            asgi["path"],
            self.route,
            self.status or _NO_ANSWER,
            duration,
            client[0] if client else "",
            self.cause or self._find_loss(),
            self._times(duration),
        )

    def _find_loss(self) -> Literal["", "disconnect"]:
        """Return why an answer is incomplete though nobody cancelled it: Starlette ends streams by itself."""
        return "disconnect" if not self.answered and is_gone(self._connection) else ""

    def describe(self) -> str:
        """Return where its tasks stand, as the lines of stacks."""
        tasks = [task for task in self._innermost if not task.done()]
        if not tasks and self._task is not None:
            tasks = [*find_innermost(self._task)] or [self._task]
        return "\n".join(describe_task(task) for task in tasks)

    def _begin(self, message: Message) -> None:
        status = self.status = message["status"]
        headers = list(message.get("headers", ()))
        sized = identified = False
        for name, _ in headers:
            if name == b"content-length":
                sized = True
            elif name == b"x-request-id":
                identified = True
        if not sized and status >= 200 and status not in {204, 304}:
            self._begin_stream(headers)
        if not identified:  # an app that sets it itself has the last word
            headers.append((b"x-request-id", self.id.encode("ascii")))
        if self.closing:
            headers.append((b"connection", b"close"))
        if self.timed:
            if self._ledger is None:
                times = b"app;dur=%.1f" % ((time.monotonic() - self.started) * 1000)
            else:
                times = _render_times(self.times())
            headers.append((b"server-timing", times))
        message["headers"] = headers

    def _begin_stream(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.streaming = True
        self.events = any(
            name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers
        )
        if self.events and self._renewal is not None:
            self.deadline = self._renewal = None
        self._release()

    def _release(self) -> None:
        """Give the place back, with how long an answer that is no error took."""
        if self.admitted is not None:
            failed = self.status is None or self.status >= 400
            self.release(None if failed else time.monotonic() - self.admitted)


def _render_times(times: dict[str, float]) -> bytes:
    """Render a Server-Timing header (W3C Server Timing): milliseconds by class."""
    kinds: list[Any] = [kind for kind in KINDS if kind in times or kind == APP]
    return ", ".join(f"{kind};dur={times[kind] * 1000:.1f}" for kind in kinds).encode("ascii")
