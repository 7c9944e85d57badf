"""The functions that tasks wait in, by name, and what their variables say about what is waited for.

A name and not the function itself: so nothing is imported that the app does not use, and no room knows of the
tree. A test finds each name in the installed packages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, cast
from urllib.parse import urlsplit

from freeloop.scope import name_of
from freeloop.tree.coroutines import Step
from freeloop.tree.futures import Ends, Future, Task, comes_from_thread
from freeloop.tree.model import is_apps

Local: TypeAlias = Mapping[str, Any]

_LONGEST: Final = 120  # characters of a statement or URL


@dataclass(slots=True)
class Fact:
    """What one task waits for, with live objects; for the time of a look only.

    Attributes:
        kind: A key of :data:`freeloop.tree.waits.PHRASES`.
        name: Which one.
        futures: Whose end ends it.
        needs: All of them, or any one.
        open: Whether something else may end it too.
        began: When it began, in seconds of :func:`time.monotonic`; None: unknown.
        until: When it ends by itself, in the same seconds; None: never, or unknown.
        wanted: What others hold and this task wants, one thing or any one of several; with the holder's name
            where that is known.
        permits: How many can hold it; None: unknown.
        owners: The tasks that hold it, where it knows them itself.
        subject: What somebody else has to act on; None: not known.
        thread: The number of the thread that works for it, or the future that the thread will set.
    """

    kind: str
    name: str = ""
    futures: Iterable[Any] = ()
    needs: Literal["all", "any"] = "all"
    open: bool = False
    began: float | None = None
    until: float | None = None
    wanted: Mapping[Any, str] = field(default_factory=dict)
    permits: int | None = None
    owners: Sequence[Task] = ()
    subject: Any = None
    thread: Any = None


def find_fact(steps: Sequence[Step], waiter: Future) -> tuple[Fact, int]:
    """Return what a suspended task waits for.

    Args:
        steps: Where it stands.
        waiter: The future that it waits for.

    Returns:
        The fact, and how many of the steps belong to what waits for it: the others have to do with the app.
    """
    found: tuple[Fact, int] | None = None
    for depth in range(len(steps) - 1, -1, -1):
        step = steps[depth]
        read = _READERS.get(step.code.co_qualname)
        if read is not None and (module := step.module) in read:
            fact = _try(read[module], step.local)
            if fact is not None:
                found = fact, depth
        elif is_apps(step.module):
            break  # the code that waits: what is not the app's passes on what it waits for
    if found is None:
        return _read_future(waiter), len(steps)
    return found


def _try(read: _Reader, local: Local) -> Fact | None:
    try:
        return read(local)
    except Exception:  # noqa: BLE001 - another version of somebody's library: it tells less then
        return None


def _read_future(waiter: Future) -> Fact:
    if isinstance(waiter, asyncio.Task):
        return Fact("task", futures=(waiter,))
    if hasattr(waiter, "_children"):
        return Fact("tasks", futures=(waiter,))
    if (source := comes_from_thread(waiter)) is not None:
        return Fact("thread", open=True, thread=source)
    if not Ends((waiter,)).open:
        return Fact("task", futures=(waiter,))  # of asyncio.shield
    return Fact("future", futures=(waiter,), subject=waiter)


def label(thing: object) -> str:
    """Return what to call an object that has no name."""
    return f"{type(thing).__name__} {id(thing):#x}"


def _sleep(local: Local) -> Fact | None:
    timer = local.get("h")
    if timer is None:
        return None  # sleep(0), which waits for nothing
    until = timer.when()
    return Fact("sleep", open=True, began=until - local["delay"], until=until)


def _wait(local: Local) -> Fact:
    timer = local.get("timeout_handle")
    return Fact(
        "tasks",
        futures=local["fs"],
        needs="all" if local["return_when"] == asyncio.ALL_COMPLETED else "any",
        until=None if timer is None else timer.when(),
    )


def _wait_for(local: Local) -> Fact | None:
    timer = local.get("timeout_handle")  # before 3.12; later ones await it themselves
    if timer is None:
        return None
    return Fact("task", futures=(local["fut"],), until=timer.when())


def _as_completed(local: Local) -> Fact:
    iterator = local.get("self")
    if iterator is None:  # before 3.13, when the tasks know only the queue
        return Fact("tasks", needs="any", subject=local["done"])
    return Fact("tasks", futures=list(iterator._todo), needs="any")


def _task_group(local: Local) -> Fact | None:
    tasks = list(local["self"]._tasks)
    return Fact("group", futures=tasks) if tasks else None


def _lock(local: Local) -> Fact:
    lock = local["self"]
    return Fact("lock", label(lock), needs="any", wanted={lock: ""}, permits=1, open=True)


def _owned_lock(local: Local) -> Fact:
    lock = local["self"]
    owner = lock._owner_task
    return Fact("lock", label(lock), owners=[owner] if owner else [], open=owner is None)


def _semaphore(local: Local) -> Fact:
    semaphore = local["self"]
    permits = getattr(semaphore, "_bound_value", None)  # a plain one may be released by anybody, more often
    name = f"{label(semaphore)}" + (f" of {permits}" if permits else "")
    return Fact("semaphore", name, needs="any", wanted={semaphore: ""}, permits=permits, open=True)


def _limiter(local: Local) -> Fact:
    limiter = local["self"]
    borrowers = list(limiter._borrowers)
    owners = [borrower for borrower in borrowers if isinstance(borrower, asyncio.Task)]
    name = f"{label(limiter)} ({len(borrowers)} of {limiter._total_tokens:g} borrowed)"
    return Fact("limiter", name, owners=owners, needs="any", open=len(owners) < len(borrowers))


def _subject(kind: str) -> Callable[[Local], Fact]:
    def read(local: Local) -> Fact:
        subject = local["self"]
        return Fact(kind, label(subject), open=True, subject=subject)

    return read


def _queue(kind: str) -> Callable[[Local], Fact]:
    def read(local: Local) -> Fact:
        queue = local["self"]
        size = f"{queue.qsize()} of {queue.maxsize}" if queue.maxsize else str(queue.qsize())
        return Fact(kind, f"{label(queue)} ({size} in it)", open=True, subject=queue)

    return read


def _stream(kind: str) -> Callable[[Local], Fact]:
    def read(local: Local) -> Fact:
        state = local["self"]._state
        size = f"{len(state.buffer)} of {state.max_buffer_size:g} in it"
        return Fact(kind, f"stream {id(state):#x} ({size})", open=True)

    return read


def _peer(kind: str) -> Callable[[Local], Fact]:
    def read(local: Local) -> Fact:
        transport = getattr(local["self"], "_transport", None)
        peer = None if transport is None else transport.get_extra_info("peername")
        name = ":".join(map(str, peer[:2])) if isinstance(peer, tuple) else str(peer or "a pipe or socket")
        return Fact(kind, name, open=True)

    return read


def _socket(local: Local) -> Fact:
    return Fact("socket", str(local.get("address", "")) or f"descriptor {local['sock'].fileno()}", open=True)


def _process(local: Local) -> Fact:
    return Fact("process", str(local["self"].pid), open=True)


def _asyncio_thread(local: Local) -> Fact | None:
    call = local.get("func_call")
    if call is None:
        return None
    return Fact("thread", name_of(call.args[0]), open=True)  # partial(context.run, function, …)


def _anyio_thread(local: Local) -> Fact | None:
    worker = local.get("worker")
    if worker is None:
        return None  # it has not come so far: it waits for the limiter
    function = local["func"]
    call = getattr(function, "__self__", None)  # freeloop.threads wraps what it calls
    called = cast("Callable[..., object]", getattr(call, "_function", function))
    return Fact("thread", name_of(called), open=True, thread=worker.ident)


def _thread_place(local: Local) -> Fact:
    pool = local["self"]
    return Fact("thread-place", f"'{pool.name}' ({pool.in_use} of {pool.size} busy)", open=True)


def _pool(local: Local) -> Fact:
    pool = local["self"]
    name = f"'{pool.name}' ({pool.in_use} of {pool.size} lent)"
    leases = dict(pool.holders)
    began, seconds = local.get("began"), local.get("seconds")
    until = None if began is None or seconds is None else began + seconds
    # Where not all connections are made yet, it may be the server that is waited for.
    permits = pool.size if len(leases) == pool.size else None
    return Fact(
        "connection", name, needs="any", wanted=leases, permits=permits, began=began, until=until, open=True
    )


def _asyncpg_pool(local: Local) -> Fact:
    pool = local["self"]
    lent = pool.get_size() - pool.get_idle_size()
    wanted = dict.fromkeys(pool._holders, "")
    name = f"{label(pool)} ({lent} of {pool.get_max_size()} lent)"
    return Fact("connection", name, needs="any", wanted=wanted, permits=len(wanted), open=True)


def _statement(local: Local) -> Fact:
    return Fact("statement", _shorten(str(local.get("query") or local.get("command") or "")), open=True)


def _postgres(local: Local) -> Fact:
    del local
    return Fact("postgres", open=True)


def _outbound(local: Local) -> Fact:
    request = local["request"]
    return Fact("upstream", _shorten(request.name), open=True, began=local.get("started"))


def _turn(local: Local) -> Fact:
    return Fact("turn", _shorten(local["request"].name), open=True, began=local.get("started"))


def _shared_call(local: Local) -> Fact | None:
    if local.get("seat") is None:
        return None
    return Fact("shared", _shorten(local["request"].name), open=True)


def _aiohttp(local: Local) -> Fact:
    url = urlsplit(str(local["str_or_url"]))
    # Neither user nor query, which may be secrets.
    place = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    return Fact("upstream", _shorten(f"{local['method']} {place}"), open=True)


def _gate(local: Local) -> Fact:
    return Fact("gate", local["self"].template, open=True)


def _plain(kind: str) -> Callable[[Local], Fact]:
    def read(local: Local) -> Fact:
        del local
        return Fact(kind, open=True)

    return read


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


_HTTP: Final = ("uvicorn.protocols.http.httptools_impl", "uvicorn.protocols.http.h11_impl")
_Reader: TypeAlias = Callable[[Local], Fact | None]

FUNCTIONS: Final[dict[tuple[str, str], _Reader]] = {
    ("asyncio.tasks", "sleep"): _sleep,
    ("asyncio.tasks", "_wait"): _wait,
    ("asyncio.tasks", "wait_for"): _wait_for,
    ("asyncio.tasks", "as_completed.<locals>._wait_for_one"): _as_completed,
    ("asyncio.tasks", "_AsCompletedIterator._wait_for_one"): _as_completed,
    ("asyncio.taskgroups", "TaskGroup.__aexit__"): _task_group,
    ("asyncio.taskgroups", "TaskGroup._aexit"): _task_group,
    ("asyncio.locks", "Lock.acquire"): _lock,
    ("asyncio.locks", "Semaphore.acquire"): _semaphore,
    ("asyncio.locks", "Event.wait"): _subject("event"),
    ("asyncio.locks", "Condition.wait"): _subject("condition"),
    ("asyncio.locks", "Barrier.wait"): _subject("barrier"),
    ("asyncio.queues", "Queue.get"): _queue("queue-get"),
    ("asyncio.queues", "Queue.put"): _queue("queue-put"),
    ("asyncio.queues", "Queue.join"): _queue("queue-join"),
    ("asyncio.streams", "StreamReader._wait_for_data"): _peer("data"),
    ("asyncio.streams", "StreamWriter.drain"): _peer("drain"),
    ("asyncio.subprocess", "Process.wait"): _process,
    ("asyncio.subprocess", "Process.communicate"): _process,
    ("asyncio.threads", "to_thread"): _asyncio_thread,
    ("asyncio.base_events", "Server.serve_forever"): _plain("connections"),
    ("asyncio.selector_events", "BaseSelectorEventLoop.sock_connect"): _socket,
    ("asyncio.selector_events", "BaseSelectorEventLoop.sock_recv"): _socket,
    ("anyio._backends._asyncio", "Lock.acquire"): _owned_lock,
    ("anyio._backends._asyncio", "Semaphore.acquire"): _semaphore,
    ("anyio._backends._asyncio", "CapacityLimiter.acquire_on_behalf_of"): _limiter,
    ("anyio._backends._asyncio", "TaskGroup.__aexit__"): _task_group,
    ("anyio._backends._asyncio", "AsyncIOBackend.run_sync_in_worker_thread"): _anyio_thread,
    ("anyio._core._synchronization", "Condition.wait"): _subject("condition"),
    ("anyio.streams.memory", "MemoryObjectReceiveStream.receive"): _stream("queue-get"),
    ("anyio.streams.memory", "MemoryObjectSendStream.send"): _stream("queue-put"),
    ("asyncpg.pool", "Pool._acquire"): _asyncpg_pool,
    ("asyncpg.connection", "Connection.execute"): _statement,
    ("asyncpg.connection", "Connection.executemany"): _statement,
    ("asyncpg.connection", "Connection._execute"): _statement,
    ("asyncpg.connect_utils", "_connect"): _postgres,
    ("aiohttp.client", "ClientSession._request"): _aiohttp,
    ("uvicorn.protocols.http.flow_control", "FlowControl.drain"): _plain("client-reads"),
    **{(module, "RequestResponseCycle.receive"): _plain("client") for module in _HTTP},
    ("freeloop.database.pool", "Pool._acquire"): _pool,
    ("freeloop.outbound.aiohttp_transport", "AiohttpTransport.send"): _outbound,
    ("freeloop.outbound.rate", "RateLimit._wait"): _turn,
    ("freeloop.outbound.bulkhead", "Bulkhead._wait"): _turn,
    ("freeloop.outbound.coalesce", "Coalesce.send"): _shared_call,
    ("freeloop.threads.pool", "ThreadPool._acquire"): _thread_place,
    ("freeloop.gate.bulkhead", "Bulkhead.wait"): _gate,
}
"""Module and qualified name of each function that says what is waited for."""

_READERS: Final[dict[str, dict[str, _Reader]]] = {}
for (_module, _name), _reader in FUNCTIONS.items():
    _READERS.setdefault(_name, {})[_module] = _reader
