"""Whose code a line is, by the name of its module: the app's, or of what carries the app.

Any room may import it; it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

_CARRIERS: Final = frozenset(
    {
        *("anyio", "fastapi", "starlette", "typer", "uvicorn", "uvloop"),
        *("asyncio", "concurrent", "contextlib", "runpy", "threading"),
    }
)


def tell_apps(*others: str) -> Callable[[str], bool]:
    """Return a function that tells by the name of a module whether it is the app's.

    It is not where it is ours, the framework's or Python's own machinery around a call. ``freeloop.service``
    is an app like any other.

    Args:
        others: Further packages that are not the app's: those that stand between it and who asks.
    """
    carriers = _CARRIERS | {*others}

    @lru_cache(maxsize=4096)  # asked for each thing that is borrowed, and for each line of each task
    def is_apps(module: str) -> bool:
        package, _, rest = module.partition(".")
        if package == "freeloop":
            return rest.partition(".")[0] == "service"
        return package not in carriers

    return is_apps
