"""Where stored answers lie: so many bytes at most, and what is used stays.

S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) in place of LRU. Most URLs
that a service calls are called once, and with LRU a pass over many of them, such as a nightly export, throws
out all that is used. Here what is new is on trial: in a tenth of the room, until it is used a second time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final, Generic, Protocol, TypeVar

from freeloop.outbound.identity import Identity


class Sized(Protocol):
    """Something that knows how many bytes it takes."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...


V = TypeVar("V", bound=Sized)

_TRIAL: Final = 10  # the part of the room
_MOST_USES: Final = 3
_REMEMBERED: Final = 1000


class _Place(Generic[V]):
    __slots__ = ("used", "value")

    def __init__(self, value: V) -> None:
        self.value = value
        self.used = 0


class Shelf(Generic[V]):
    """A mapping that holds at most so many bytes.

    Args:
        max_bytes: 1 or more. What takes more than a tenth of it is not held, so that one huge answer cannot
            throw out a thousand.

    Attributes:
        bytes: How many are held now.
        evicted: How many values had to go so far.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes is 1 or more, not {max_bytes}")
        self.max_bytes = max_bytes
        self.bytes = self.evicted = 0
        self._trial_bytes = 0
        self._trial: OrderedDict[Identity, _Place[V]] = OrderedDict()
        self._main: OrderedDict[Identity, _Place[V]] = OrderedDict()
        self._gone: OrderedDict[int, None] = OrderedDict()  # hashes of what left its trial unused
        self._targets: dict[str, set[Identity]] = {}

    def __len__(self) -> int:
        return len(self._trial) + len(self._main)

    def get(self, key: Identity) -> V | None:
        """Return what is held, and note that it is used."""
        place = self._main.get(key) or self._trial.get(key)
        if place is None:
            return None
        if place.used < _MOST_USES:
            place.used += 1
        return place.value

    def put(self, key: Identity, value: V) -> None:
        """Hold a value, in place of the one before."""
        if value.size > self.max_bytes // _TRIAL:
            self.remove(key)
            return
        place = self._main.get(key) or self._trial.get(key)
        if place is None:
            place = _Place(value)
            self._targets.setdefault(key[0], set()).add(key)
            known = hash(key) in self._gone
            self._gone.pop(hash(key), None)
            (self._main if known else self._trial)[key] = place
            change = value.size
        else:
            change = value.size - place.value.size
            place.value = value
        self.bytes += change
        if key in self._trial:
            self._trial_bytes += change
        while self.bytes > self.max_bytes:
            self._evict()

    def remove(self, key: Identity) -> None:
        """Hold a key no longer; does nothing where it is not held."""
        place = self._trial.pop(key, None)
        if place is not None:
            self._trial_bytes -= place.value.size
        else:
            place = self._main.pop(key, None)
        if place is not None:
            self._forget(key, place)

    def remove_target(self, target: str) -> None:
        """Hold nothing of a target any longer, see :func:`freeloop.outbound.identity.target_of`."""
        for key in tuple(self._targets.get(target, ())):
            self.remove(key)

    def clear(self) -> None:
        """Hold nothing."""
        for target in tuple(self._targets):
            self.remove_target(target)
        self._gone.clear()

    def _evict(self) -> None:
        """Take one step towards fewer bytes; each step takes a value out or makes one less used."""
        if self._trial and (self._trial_bytes > self.max_bytes // _TRIAL or not self._main):
            key, place = self._trial.popitem(last=False)
            self._trial_bytes -= place.value.size
            if place.used:
                place.used = 0
                self._main[key] = place
                return
            self._gone[hash(key)] = None
            if len(self._gone) > max(len(self), 1):
                self._gone.popitem(last=False)
        else:
            key, place = self._main.popitem(last=False)
            if place.used:
                place.used -= 1
                self._main[key] = place
                return
        self.evicted += 1
        self._forget(key, place)

    def _forget(self, key: Identity, place: _Place[V]) -> None:
        self.bytes -= place.value.size
        keys = self._targets[key[0]]
        keys.discard(key)
        if not keys:
            del self._targets[key[0]]


class Writes:
    """When which target was written last: of the latest 1,000 exactly, of others at the latest when."""

    __slots__ = ("_floor", "_when")

    def __init__(self) -> None:
        self._when: OrderedDict[str, float] = OrderedDict()
        self._floor = -math.inf

    def note(self, target: str, now: float) -> None:
        """Note that a write of a target has ended."""
        self._when[target] = now
        self._when.move_to_end(target)
        if len(self._when) > _REMEMBERED:
            _, self._floor = self._when.popitem(last=False)

    def since(self, target: str, when: float) -> bool:
        """Return whether a write of a target may have ended since."""
        return max(self._floor, self._when.get(target, -math.inf)) >= when
