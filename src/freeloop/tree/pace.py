"""Long work in a thread beside the loop, which must not wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")

_WORK: Final = 0.001  # seconds
_REST: Final = 0.0001  # seconds; with none at all the loop's thread mostly comes too late to get the GIL


def paced(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, and let others have the GIL every millisecond: by itself Python does so every 5 ms."""
    until = time.perf_counter() + _WORK
    for item in items:
        yield item
        if time.perf_counter() > until:
            time.sleep(_REST)
            until = time.perf_counter() + _WORK
