"""What to do about a block: one sentence, by what held the loop up and by what was called. Pure.

None that would not help: a thread is no remedy for what holds the GIL.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from freeloop.watch.place import name_module
from freeloop.watch.stack import Stack
from freeloop.watch.verdict import Cause

_RELEASES: Final[frozenset[Cause]] = frozenset(
    {"waiting", "computing"}
)  # what lets other threads run meanwhile
# What holds the GIL counts as computing where that is not sure: on a crowded machine, or where it is short.
_COMPUTES: Final[frozenset[Cause]] = frozenset({"computing", "gil"})


class Remedy(NamedTuple):
    """A row of the table.

    Attributes:
        key: What it is known by in :data:`ADVICE`.
        causes: The classes it helps with.
        calls: How the dotted names of what was called begin.
        says: What to do.
    """

    key: str
    causes: frozenset[Cause]
    calls: tuple[str, ...]
    says: str


_TABLE: Final = (
    Remedy("sleep", frozenset({"waiting"}), ("time.sleep",), "Write 'await asyncio.sleep(seconds)'."),
    Remedy(
        "http",
        frozenset({"waiting"}),
        ("requests.", "urllib3.", "urllib.request.", "http.client.", "httpx.", "httpx2.", "pycurl."),
        "Await the outbound client ('outbound: Outbound'), or give the call to a thread: "
        "'await kit.run_sync(function, …)'.",
    ),
    Remedy(
        "names",
        frozenset({"waiting"}),
        ("socket.getaddrinfo", "socket.gethost", "_socket.getaddrinfo", "_socket.gethost", "socket.getfqdn"),
        "Await 'asyncio.get_running_loop().getaddrinfo(host, port)', which looks names up in a thread.",
    ),
    Remedy(
        "processes",
        frozenset({"waiting"}),
        ("subprocess.", "os.system", "posix.system", "os.wait", "posix.wait", "os.popen"),
        "Await 'asyncio.create_subprocess_exec(…)' and its 'communicate()'.",
    ),
    Remedy(
        "databases",
        frozenset({"waiting"}),
        (
            "psycopg2.",
            "psycopg.",
            "pymysql.",
            "MySQLdb.",
            "mysql.",
            "sqlalchemy.",
            "pymongo.",
            "redis.",
            "peewee.",
        ),
        "Use a driver that awaits ('db: Db' for PostgreSQL), or give the call to a thread: "
        "'await kit.run_sync(function, …)'.",
    ),
    Remedy(
        "sqlite",
        _RELEASES,
        ("sqlite3.", "_sqlite3."),
        "Give the whole piece of work on the file to a thread, its connection included: "
        "'await kit.run_sync(function, …)'.",
    ),
    Remedy(
        "threads",
        frozenset({"waiting"}),
        ("_thread.", "threading.", "queue.", "_queue.", "concurrent.futures.", "multiprocessing."),
        "Let no thread be waited for on the loop: 'asyncio.Lock' where only coroutines use it, else "
        "'await kit.run_sync(function, …)'; a future of a thread or process: 'await asyncio.wrap_future(…)'.",
    ),
    Remedy(
        "files",
        _RELEASES,
        ("_io.", "io.", "builtins.open", "pathlib.", "shutil.", "os.", "posix.", "tempfile.", "zipfile."),
        "Give the work on files to a thread: 'await kit.run_sync(function, …)'.",
    ),
    Remedy(
        "hashes",
        frozenset({"computing"}),
        (
            "_hashlib.",
            "hashlib.",
            "bcrypt.",
            "_bcrypt.",
            "argon2.",
            "_argon2",
            "zlib.",
            "bz2.",
            "lzma.",
            "gzip.",
        ),
        "Give it to a process: 'loop.run_in_executor(processes, function, …)' with a ProcessPoolExecutor; as "
        "it lets go of the GIL, a thread will do too: 'await kit.run_sync(function, …)'.",
    ),
    Remedy(
        "patterns",
        _COMPUTES,
        ("re.", "_sre.", "regex."),
        "Bound the length of the text, and remove nested repetition from the pattern; what is left belongs "
        "into a process (ProcessPoolExecutor). A thread will not help: the match holds the GIL.",
    ),
    Remedy(
        "encoding",
        _COMPUTES,
        ("json.", "_json.", "orjson.", "pickle.", "_pickle.", "marshal."),
        "Send less at a time (pages, a stream of rows), or encode it in a process (ProcessPoolExecutor). A "
        "thread will not help: it holds the GIL.",
    ),
    Remedy(
        "sorting",
        _COMPUTES,
        (
            "builtins.sorted",
            "builtins.list.sort",
            "list.sort",
            "builtins.min",
            "builtins.max",
            "builtins.sum",
        ),
        "Let PostgreSQL do it (ORDER BY, LIMIT), or a process (ProcessPoolExecutor). A thread will not help: "
        "it holds the GIL.",
    ),
)

_OTHERWISE: Final[dict[str, str]] = {
    "waiting": "Await something that waits without blocking, or give the call to a thread: "
    "'await kit.run_sync(function, …)'.",
    "computing": "Give it to a process: 'loop.run_in_executor(processes, function, …)' with a "
    "ProcessPoolExecutor. A thread would take turns with the loop for the GIL.",
    "gil": "Give it to a process: 'loop.run_in_executor(processes, function, …)' with a ProcessPoolExecutor. "
    "A thread will not help: it holds the GIL.",
    "thread": "The loop was free, and the thread held the GIL: give what it does to a process "
    "(ProcessPoolExecutor) in place of a thread.",
}
_SHORT_STEPS: Final = (
    "No step is long, but many follow each other: let fewer run at once ('asyncio.Semaphore' around it), "
    "make each shorter, or give the work to a process (ProcessPoolExecutor)."
)
ADVICE: Final[dict[str, str]] = {
    **{remedy.key: remedy.says for remedy in _TABLE},
    **_OTHERWISE,
    "steps": _SHORT_STEPS,
}
"""All that :func:`advise` may return, by key."""


def advise(cause: Cause, below: Stack, calls: Iterable[str], *, steps: int = 1) -> str:
    """Return what to do.

    Args:
        cause: What the loop was held up by.
        below: The lines that the app's line called, down to the innermost.
        calls: What the innermost line calls.
        steps: How many steps it was.
    """
    if cause == "thread":
        return _OTHERWISE[cause]
    names = [*calls, *(f"{name_module(line.file)}.{line.function}" for line in below)]
    for remedy in _TABLE:
        if cause in remedy.causes and any(name.startswith(remedy.calls) for name in names):
            return remedy.says
    return _SHORT_STEPS if steps > 1 and cause != "waiting" else _OTHERWISE[cause]
