"""What is shown to several at once is read and rendered once, and at most once a second."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_MOST: Final = 200  # different views that are kept


class _View(Generic[T]):
    """One view and when it was made."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.made = float("-inf")
        self.value: T | None = None


class Shared(Generic[T]):
    """Makes each view anew only once it is old enough; whoever asks meanwhile gets the same."""

    def __init__(self) -> None:
        self._views: OrderedDict[Hashable, _View[T]] = OrderedDict()

    async def get(self, key: Hashable, every: float, make: Callable[[], Awaitable[T]]) -> T:
        """Return a view.

        Args:
            key: Which one.
            every: Seconds that one is good for.
            make: Makes it.
        """
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = _View()
            if len(self._views) > _MOST:
                self._views.popitem(last=False)
        self._views.move_to_end(key)
        async with view.lock:
            # A little less, since whoever comes back after that time comes back a little early.
            if view.value is None or time.monotonic() - view.made >= every * 0.9:
                view.value = await make()
                view.made = time.monotonic()
            return view.value

    def clear(self) -> None:
        """Forget all, since something was done that they may show."""
        self._views.clear()
