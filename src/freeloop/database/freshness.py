"""How fresh a read replica is, told by moments of our own clock: a policy without I/O.

The primary's position in its log is looked at again and again. A replica that has replayed such a position
has everything that was committed before the look. So the question "has it the write that ended then?" is a
comparison of two moments, and no write has to ask the primary where it ended.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

NEVER: Final = -math.inf
_LOOKS: Final = 300
_LONGEST_HEADER: Final = 40  # bytes, of a page of the log (XLogLongPageHeaderData)

Verdict: TypeAlias = Literal["fresh", "wrote", "behind"]


class Timeline:
    """Where the primary's log stood, and when; the latest 300 looks are kept."""

    def __init__(self) -> None:
        self._moments: list[float] = []
        self._positions: list[int] = []

    def add(self, moment: float, position: int) -> None:
        """Note a look.

        Args:
            moment: When the question was sent: what was committed before is before the position.
            position: The end of the log, in bytes.
        """
        if self._positions and position < self._positions[-1]:
            # Another server, which was behind: what the one before has told says nothing about its log.
            self._moments.clear()
            self._positions.clear()
        self._moments.append(moment)
        self._positions.append(position)
        if len(self._moments) > _LOOKS:
            del self._moments[0], self._positions[0]

    def find_moment(self, replayed: int) -> float:
        """Return before which moment everything is in a replica; minus infinity: not known.

        Args:
            replayed: How far it has replayed the log, in bytes.
        """
        looks = bisect_right(self._positions, replayed)
        return self._moments[looks - 1] if looks else NEVER


def find_end(position: int, page: int) -> int:
    """Return where the last record ends, of a position where the next one would begin.

    At the start of a page these two differ by its header, and a replica of an idle server would seem to be
    behind for ever.

    Args:
        position: ``pg_current_wal_insert_lsn()`` in bytes.
        page: ``wal_block_size`` in bytes.
    """
    header = position % page
    return position - header if header <= _LONGEST_HEADER else position


def judge(fresh: float, *, wrote: float, now: float, max_lag: float) -> Verdict:
    """Decide whether a replica may answer a read.

    Args:
        fresh: Before which moment the replica has everything.
        wrote: When the latest write ended that the reader must see; minus infinity: there was none.
        now: The time. A replica is compared with the clock and not with the latest look at the primary:
            while that cannot be looked at, others may still write there.
        max_lag: Seconds that it may be behind.

    Returns:
        ``fresh``: it may. ``wrote``: the reader's own write may be missing there. ``behind``: it is too far
        behind for anybody.
    """
    if now - fresh > max_lag:
        return "behind"
    return "fresh" if wrote <= fresh else "wrote"


def summarize(verdicts: Iterable[Verdict]) -> Verdict:
    """Return what holds where no replica may answer: ``wrote`` where one could but for that."""
    return "wrote" if "wrote" in verdicts else "behind"
