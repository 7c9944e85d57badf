"""The request scope: one deadline, one cancellation, one owner of what is borrowed, one ledger of time.

Every HTTP request, WebSocket and background execution runs in a :class:`Scope`. It is the ground floor: any
room may import it, and it imports only the ledger and whose code a line is.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import math
import random
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from types import CodeType, FrameType
from typing import Any, Final, Literal, NamedTuple, ParamSpec, Self, TypeAlias, TypeVar, overload

from freeloop.ledger import APP, Kind, Ledger
from freeloop.ownership import tell_apps

P = ParamSpec("P")
T = TypeVar("T")
Cause: TypeAlias = Literal["deadline", "disconnect", "shutdown", "request", "lost"]

logger = logging.getLogger("freeloop.scope")

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._~-]{1,128}")
# W3C Trace Context: version-traceid-parentid-flags, lower-case hex, an all-zero trace id is invalid.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})"
)
_TRACESTATE: Final = re.compile(rb"[\x20-\x7e]{1,512}")  # what must be passed on at least, and is a header
_DEEPEST: Final = 20
# These borrow on behalf of the app, as ours do: they call through freeloop.outbound.httpx_transport.
_is_apps_module: Final = tell_apps("aiohttp", "anthropic", "httpx2", "openai")


class Trace(NamedTuple):
    """The trace that the caller of a unit of work named, as W3C Trace Context writes it.

    Attributes:
        id: 32 hex digits.
        flags: Two hex digits.
        state: The value of ``tracestate``; empty for none.
    """

    id: str
    flags: str
    state: str


class Lease:
    """Something borrowed on behalf of a scope; a context manager that gives it back.

    Attributes:
        kind: What was borrowed: ``connection`` (to the database), ``upstream`` (a call to one), ``socket``
            (the connection that it goes over) or ``thread``.
        name: Which one: the pool's name, the URL's host, with its port.
        since: When, in seconds of :func:`time.monotonic`.
        idle_since: Since when it lies unused, in the same seconds; None while it is used, or where whoever
            has lent it does not tell.
        awaited: What the scope has borrowed beside it while it lay unused, each line of code once.
    """

    __slots__ = ("_code", "_held", "_line", "awaited", "idle_since", "kind", "name", "since")

    def __init__(self, held: dict[Lease, None] | None, kind: str, name: str, inside: int = 0) -> None:
        self.kind = kind
        self.name = name
        self.since = time.monotonic()
        self.idle_since: float | None = None
        self.awaited: dict[tuple[CodeType | None, int], Lease] | None = None
        self._held = held
        self._code: CodeType | None = None
        self._line = 0
        if held is not None:
            held[self] = None
            # Only the code and the line are kept: a frame would keep everything alive that it holds.
            # Each frame that is looked at is made an object of, which costs more than all else here.
            frame = _find_borrower(sys._getframe(2 + inside))
            if frame is not None:
                self._code, self._line = frame.f_code, frame.f_lineno

    @property
    def place(self) -> str:
        """The line of the app's code that borrowed it: ``file:line in function``; empty where unknown."""
        if self._code is None:
            return ""
        return f"{self._code.co_filename}:{self._line} in {self._code.co_qualname}"

    def rest(self) -> None:
        """Say that it lies unused from now on."""
        self.idle_since = time.monotonic()

    def use(self) -> None:
        """Say that it is used from now on."""
        self.idle_since = self.awaited = None

    def note(self, lease: Lease) -> None:
        """Note that the scope borrows something else, where this lies unused meanwhile."""
        if self.idle_since is not None:
            self.awaited = {} if self.awaited is None else self.awaited
            self.awaited.setdefault((lease._code, lease._line), lease)

    @property
    def held(self) -> bool:
        """Whether a scope holds it still."""
        return self._held is not None and self in self._held

    def release(self) -> None:
        """Give it back; idempotent."""
        if self._held is not None:
            self._held.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Spending:
    """A context manager that books the time of its block in a ledger."""

    __slots__ = ("_kind", "_ledger")

    def __init__(self, ledger: Ledger | None, kind: Kind) -> None:
        self._ledger = ledger
        self._kind = kind

    def __enter__(self) -> None:
        if self._ledger is not None:
            self._ledger.enter(self._kind)

    def __exit__(self, *_: object) -> None:
        if self._ledger is not None:
            self._ledger.leave(self._kind)


class Scope:
    """One unit of work.

    Attributes:
        id: The request id: printable ASCII, at most 128 characters; echoed in ``X-Request-ID``.
        kind: ``http``, ``websocket``, ``background`` or ``task``.
        route: The route's template such as ``/items/{item_id}``, or the name of a background function.
        started: When it began, in seconds of :func:`time.monotonic`.
        deadline: When its time is over, in seconds of :func:`time.monotonic`; None: never.
        critical: Whether it may wait for nothing that others use up (health checks).
        trace: The trace that its caller named; None: it named none.
        cause: Why it was cancelled; None while it was not. Of a durable task also ``request``: somebody asked
            for it; and ``lost``: another worker has it.
        wrote: When the latest write to a database ended that its read replicas must have, in seconds of
            :func:`time.monotonic`; minus infinity: there was none.
    """

    # Defaults on the class: most requests never set them, and a request makes one scope.
    critical: bool = False
    trace: Trace | None = None
    cause: Cause | None = None
    wrote: float = -math.inf
    _task: asyncio.Task[Any] | None = None
    _ledger: Ledger | None = None
    _leases: dict[Lease, None] | None = None
    _children: set[asyncio.Task[Any]] | None = None

    def __init__(
        self, request_id: str, *, kind: str = "background", route: str = "", seconds: float | None = None
    ) -> None:
        self.id = request_id
        self.kind = kind
        self.route = route
        self.started = time.monotonic()
        self.deadline = None if seconds is None else self.started + seconds

    def enter(self) -> None:
        """Make this the current scope of the running task and of the tasks and threads it starts."""
        self._task = asyncio.current_task()
        _current.set(self)

    def assist(self) -> None:
        """Make this the current scope of a running task that is none of it, and is not cancelled with it."""
        _current.set(self)

    def leave(self) -> None:
        """Let go of the task, whose context holds the scope: a ring would wait for the garbage collector."""
        self._task = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or has not begun."""
        return self._task is None

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, at least 0; None: there is no deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def set_deadline(self, seconds: float | None) -> None:
        """Give the rest of this unit of work so many seconds from now; None: as long as it takes.

        It may be longer than what was left. Deadlines are kept to within 0.05 s.
        """
        if seconds is not None and not seconds > 0:
            raise ValueError(f"expected seconds over 0, or None for no deadline; got {seconds!r}")
        self.deadline = None if seconds is None else time.monotonic() + seconds

    def cancel(self, cause: Cause) -> None:
        """Cancel the task that runs this scope; what it awaits ends with ``asyncio.CancelledError``.

        Called again it cancels again, and keeps the first cause.
        """
        self.cause = self.cause or cause
        if self._task is not None:
            self._task.cancel(cause)

    def start_soon(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[T]:
        """Start a child task that belongs to this scope: it is cancelled where it still runs at its end.

        A child that fails is logged and stops none of its siblings; whoever awaits the task gets its error.

        Args:
            function: An async function.
            args: Its arguments.
            kwargs: Its keyword arguments.
        """
        child = asyncio.get_running_loop().create_task(function(*args, **kwargs), name=name_of(function))
        children = self._children = self._children or set()
        children.add(child)
        child.add_done_callback(self._forget_child)
        return child

    @property
    def children(self) -> tuple[asyncio.Task[Any], ...]:
        """The child tasks that run now."""
        return tuple(self._children or ())

    def borrow(self, kind: str, name: str, inside: int = 0) -> Lease:
        """Note that something is borrowed until the lease is released.

        Args:
            kind: As of the lease.
            name: As of the lease.
            inside: How many of the innermost calls are the lender's own, which saves looking at them.
        """
        leases = self._leases = {} if self._leases is None else self._leases
        lease = Lease(leases, kind, name, inside)
        if len(leases) > 1:
            for held in leases:
                held.note(lease)
        return lease

    @property
    def leases(self) -> tuple[Lease, ...]:
        """What is borrowed now, the longest held first."""
        return tuple(self._leases or ())

    def spend(self, kind: Kind) -> Spending:
        """Book the time of a ``with`` block under ``kind``."""
        ledger = self._ledger = self._ledger or Ledger()
        return Spending(ledger, kind)

    def times(self) -> dict[str, float]:
        """Return where the time went so far, in seconds by class; the rest is ``app``."""
        return self._times(time.monotonic() - self.started)

    def _times(self, total: float) -> dict[str, float]:
        return {APP: total} if self._ledger is None else self._ledger.read(total)

    async def end_children(self, patience: float = 5.0) -> None:
        """Cancel the child tasks that still run, and wait for them.

        Args:
            patience: Seconds that their clean-up may take before they are cancelled again, with a warning
                that shows where they stand; and so on, every so many seconds.
        """
        interrupted: asyncio.CancelledError | None = None
        while self._children:
            for child in tuple(self._children):
                child.cancel("the scope has ended")
            try:
                _, late = await asyncio.wait(self._children, timeout=patience)
            except asyncio.CancelledError as error:
                interrupted = error  # raised when none is left: they belong to this scope
                continue
            for child in late:
                logger.warning(
                    "a cancelled child task does not end",
                    extra={"request_id": self.id, "task": child.get_name(), "stack": describe_task(child)},
                )
        if interrupted is not None:
            raise interrupted

    def _forget_child(self, child: asyncio.Task[Any]) -> None:
        if self._children is not None:
            self._children.discard(child)
        if not child.cancelled() and (error := child.exception()) is not None:
            logger.error(
                "child task failed",
                extra={"task": child.get_name(), "request_id": self.id},
                exc_info=error,
            )


_PROCESS: Final = f"{random.getrandbits(64):016x}"
_requests: Final = itertools.count(random.getrandbits(32))
_current: ContextVar[Scope | None] = ContextVar("freeloop_scope", default=None)


def current_scope() -> Scope | None:
    """Return the scope that this code runs under, also in child tasks and threads; None outside."""
    return _current.get()


def scope_of(task: asyncio.Future[Any]) -> Scope | None:
    """Return the scope that another task runs under; None outside."""
    get = getattr(task, "get_context", None)
    if get is not None:  # since Python 3.12
        context: Context | None = get()
    else:
        # The first one is the task's own; further ones are those of its callbacks.
        context = next((each for each in gc.get_referents(task) if type(each) is Context), None)
    return None if context is None else context.get(_current)


class Work(NamedTuple):
    """The unit of work that a thread works for.

    Attributes:
        route: As of its scope.
        id: As of its scope.
        kind: As of its scope.
    """

    route: str
    id: str
    kind: str


_work: Final[dict[int, Work | None]] = {}


def note_thread() -> None:
    """Note whom this thread works for now: it is asked for once the thread is suspected."""
    scope = _current.get()
    _work[threading.get_ident()] = None if scope is None else Work(scope.route, scope.id, scope.kind)


def find_work(thread: int) -> Work | None:
    """Return whom a thread works for, by its ident, or has worked for last; None: that is not known."""
    return _work.get(thread)


def spend(kind: Kind) -> Spending:
    """Book the time of a ``with`` block in the current scope, where there is one."""
    scope = _current.get()
    return Spending(None, kind) if scope is None else scope.spend(kind)


def borrow(kind: str, name: str, inside: int = 0) -> Lease:
    """Note in the current scope, where there is one, that something is borrowed.

    Args:
        kind: As of the lease.
        name: As of the lease.
        inside: How many of the innermost calls are the lender's own for sure, which saves looking at them.
    """
    scope = _current.get()
    return Lease(None, kind, name) if scope is None else scope.borrow(kind, name, inside)


@overload
def limit_wait(seconds: float) -> float: ...
@overload
def limit_wait(seconds: float | None) -> float | None: ...


def limit_wait(seconds: float | None) -> float | None:
    """Return ``seconds``, or what remains until the current scope's deadline where that is less.

    None, given or returned, is no limit.
    """
    scope = _current.get()
    remaining = None if scope is None else scope.remaining()
    if seconds is None or remaining is None:
        return remaining if seconds is None else seconds
    return min(seconds, remaining)


def name_of(function: Callable[..., object]) -> str:
    """Return what to call a function in logs: ``module.name``."""
    inner = getattr(function, "func", function)  # functools.partial
    return f"{getattr(inner, '__module__', '?')}.{getattr(inner, '__qualname__', repr(inner))}"


def describe_task(task: asyncio.Task[Any]) -> str:
    """Return where a suspended task stands, the innermost line last; empty where it has ended.

    ``Task.print_stack`` knows only the outermost coroutine.
    """
    frames: list[FrameType] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        for kind in ("cr", "ag", "gi"):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                frames.append(frame)
                awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
                break
        else:
            break
    stack = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames[-_DEEPEST:])
    return "".join(stack.format())


def choose_request_id(request_id: bytes | None, traceparent: bytes | None) -> str:
    """Return the caller's request id where it is valid, else its trace id, else a new one.

    Args:
        request_id: The value of ``X-Request-ID``, or None. Valid: 1 to 128 of ``A-Z a-z 0-9 . _ ~ -``.
        traceparent: The value of ``traceparent`` (W3C Trace Context), or None.
    """
    if request_id is not None and _REQUEST_ID.fullmatch(request_id):
        return request_id.decode("ascii")
    if traceparent is not None and (match := _TRACEPARENT.fullmatch(traceparent)):
        return match[1].decode("ascii")
    # An id has to be unique, not secret: a random number for the process, and a count.
    return f"{_PROCESS}{next(_requests):016x}"


def read_trace(traceparent: bytes, tracestate: bytes | None) -> Trace | None:
    """Return the trace that a caller names; None where its ``traceparent`` is not valid.

    Args:
        traceparent: The value of the header.
        tracestate: That of the other one, or None; what is not valid is left out.
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    state = tracestate if tracestate is not None and _TRACESTATE.fullmatch(tracestate) else b""
    return Trace(match[1].decode("ascii"), match[2].decode("ascii"), state.decode("ascii"))


def _find_borrower(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of the app's own code."""
    while frame is not None:
        if is_apps(frame):
            return frame
        frame = frame.f_back
    return None


def is_apps(frame: FrameType) -> bool:
    """Return whether a frame is of the app's own code, and of nothing that borrows on behalf of it."""
    return _is_apps_module(frame.f_globals.get("__name__", ""))
