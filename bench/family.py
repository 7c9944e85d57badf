"""A server of several processes: what all of them use together."""

from __future__ import annotations

import time
from pathlib import Path


class Family:
    """A process and all that it has started.

    Args:
        pid: Of the one that started the others.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def list_pids(self) -> list[int]:
        """Return all process ids, that of the first one first."""
        found = [self._pid]
        for pid in found:
            for threads in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, threads.read_text().split())
        return found

    def count(self) -> int:
        """Return how many processes there are."""
        return len(self.list_pids())

    def cpu_seconds(self) -> float:
        """Return user and system time so far of those that are there."""
        # As in bench.servers: the clock of another process by its id.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.list_pids())

    def memory(self) -> int:
        """Return the proportional set size of all, in bytes."""
        return sum(read_memory(pid) for pid in self.list_pids())

    def peak_memory(self) -> int:
        """Return the sum of the largest resident set sizes so far; what they share counts for each."""
        return sum(read_peak(pid) for pid in self.list_pids())


def read_memory(pid: int) -> int:
    """Return the proportional set size of a process in bytes: what is shared counts by its share."""
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    for line in rollup.read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{rollup}: expected a line 'Pss:', found none")


def read_peak(pid: int) -> int:
    """Return the largest resident set size of a process so far in bytes, with what is shared.

    Not that of getrusage(2), which begins with the size of the process that started it.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
