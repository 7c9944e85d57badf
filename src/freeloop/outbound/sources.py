"""What a layer keeps for each source: a mapping that is bounded, since a URL may name any host."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Generic, TypeVar

from freeloop.outbound.transport import OutboundRequest

T = TypeVar("T")

_LOOKED_AT: Final = 16


class Sources(Generic[T]):
    """One policy for each source, made at its first call.

    Args:
        make: Makes the policy of a source; its argument is the source's name, or ``https://host:port`` where
            the call has none.
        most: Sources that are kept, 1 or more; beyond it the one goes that was called the longest ago.
        spare: Whether a policy may go: not while something runs or waits under it.
    """

    __slots__ = ("_kept", "_latest", "_make", "_most", "_name", "_spare")

    def __init__(
        self, make: Callable[[str], T], *, most: int = 1000, spare: Callable[[T], bool] = lambda _: True
    ) -> None:
        if most < 1:
            raise ValueError(f"most is 1 source or more, not {most}")
        self._make = make
        self._most = most
        self._spare = spare
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._name: str | None = None
        self._latest: T

    def of(self, request: OutboundRequest) -> T:
        """Return the policy of the source that ``request`` calls."""
        name = request.upstream
        if name == self._name:  # nearly always: a source that has a name has layers of its own
            return self._latest
        if name in self._kept:
            self._kept.move_to_end(name)
        else:
            self._add(name)
        self._name, self._latest = name, self._kept[name]
        return self._latest

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """Names and policies, as they are now."""
        return iter(tuple(self._kept.items()))

    def __len__(self) -> int:
        return len(self._kept)

    def _add(self, name: str) -> None:
        if len(self._kept) >= self._most:
            # Those that are in use are as many as the calls under way, so a look at the oldest will do.
            for old in islice(self._kept, _LOOKED_AT):
                if self._spare(self._kept[old]):
                    del self._kept[old]
                    break
        self._kept[name] = self._make(name)
