"""The machine that the numbers are of: its description, its cores, its limits."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SERVER_CORE = 0
GENERATOR_CORE = 1
_PACKAGES = ("freeloop", "fastapi", "starlette", "pydantic", "uvicorn", "uvloop", "httptools", "aiohttp")


def describe() -> dict[str, Any]:
    """Return what a reader needs to judge the numbers."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _find("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "pinned": can_pin(),
        "memory_gib": round(int(_find("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def read_version(*command: str) -> str | None:
    """Return the first number with a point in what a program says; None where there is none of either."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=10, check=False
        )
    except OSError:
        return None
    found = re.search(r"\d+(?:\.\d+)+", done.stdout)
    return found[0] if found else None


def can_pin() -> bool:
    """Say whether server and generator can have a core each."""
    return {SERVER_CORE, GENERATOR_CORE} <= _allowed


_allowed = os.sched_getaffinity(0)


def pin(core: int) -> None:
    """Stay on ``core``; nothing, where the cores are not ours to choose."""
    if can_pin():
        os.sched_setaffinity(0, {core})


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Start processes on ``core``: they inherit it, with every thread they make."""
    before = os.sched_getaffinity(0)
    pin(core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_file_limit() -> int:
    """Allow this process, and those it starts, as many open files as the hard limit has; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _find(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "0 (unknown)"
