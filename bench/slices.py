"""Slices of load on servers that run side by side, and what each used meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bench.load_closed import Callers
from bench.report import spread, summarize, table
from bench.servers import Running

T = TypeVar("T")

HELD_UP = 0.05  # of the time: a server that is kept from its core so long is slower than it is by itself


@dataclass(frozen=True, slots=True)
class Slice:
    """What a number of requests took.

    Attributes:
        count: How many were answered, with whatever status.
        failed: How many of them otherwise than with a status of success.
        seconds: From the first request to the last answer.
        cpu: Seconds of CPU time of the server's process, until it was idle again.
        held_up: Seconds in which the server could have run, but something else had its core.
        peak: Bytes of memory that the server had at most so far, what it shares with others included.
    """

    count: int
    failed: int
    seconds: float
    cpu: float
    held_up: float
    peak: int

    @property
    def rate(self) -> float:
        """Answers of success a second."""
        return (self.count - self.failed) / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU time in µs for each answer of success; what the others took is part of it."""
        return self.cpu / max(1, self.count - self.failed) * 1e6


def load(
    server: Running,
    path: str | Sequence[str],
    callers: int,
    count: int,
    *,
    rate: float | None = None,
    method: str = "GET",
) -> Slice:
    """Ask, at ``rate`` a second or as fast as it answers, once the connections are made."""
    with Callers(server.port, path, callers, method=method) as asking:
        asking.ask(min(callers, count))  # everybody once: what a connection needs is there
        server.wait_still()
        before, held_up = server.cpu_clock(), server.held_up()
        answers = asking.ask(count, rate=rate)
        server.wait_still()  # what is done after an answer is part of the work
        return Slice(
            count,
            answers.failed,
            answers.seconds,
            server.cpu_clock() - before,
            server.held_up() - held_up,
            server.peak_memory(),
        )


def load_in_turn(names: Sequence[str], slices: int, ask: Callable[[str], T]) -> dict[str, list[T]]:
    """Load the servers of these names one after the other, so many times, each time another one first.

    What the machine does meanwhile meets all of them alike.
    """
    done: dict[str, list[T]] = {name: [] for name in names}
    for number in range(slices):
        first = number % max(1, len(names))
        for name in [*names[first:], *names[:first]]:
            done[name].append(ask(name))
    return done


def list_numbers(done: Sequence[Slice]) -> dict[str, Any]:
    """Return the numbers of a round, slice by slice."""
    return {
        "rate": [each.rate for each in done],
        "cpu": [each.cpu_us for each in done],
        "busy": [each.cpu / each.seconds for each in done],
        "held_up": [each.held_up / each.seconds for each in done],
        "peak_mb": max(each.peak for each in done) / 1e6,
        "refused": sum(each.failed for each in done) / sum(each.count for each in done),
    }


def summarize_rounds(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return medians over the rounds; the number of a round is the median of its slices."""
    medians = ("rate", "cpu", "busy", "held_up")
    return {
        "rounds": len(rounds),
        "refused": max(each["refused"] for each in rounds),
        "peak_mb": summarize([each["peak_mb"] for each in rounds]),
        **{key: summarize([statistics.median(each[key]) for each in rounds]) for key in medians},
    }


def tabulate(peers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of what :func:`summarize_rounds` has made of each."""
    return table(
        ["", "answers/s", "CPU, µs an answer", "its core busy", "refused", "memory at most, MB"],
        [
            [
                name,
                spread(peer["rate"], 0),
                spread(peer["cpu"], 0),
                f"{peer['busy']['median']:.0%}",
                f"{peer['refused']:.1%}",
                f"{peer['peak_mb']['median']:.0f}",
            ]
            for name, peer in peers.items()
        ],
    )


def pair(
    mine: Sequence[Mapping[str, Any]],
    its: Sequence[Mapping[str, Any]],
    key: str,
    compare: Callable[[float, float], float],
) -> dict[str, float]:
    """Compare what was measured side by side; the number of a round is the median of its pairs."""
    return summarize(
        [
            statistics.median(compare(a, b) for a, b in zip(one[key], other[key], strict=True))
            for one, other in zip(mine, its, strict=True)
        ]
    )


def warn_of_others(held_up: float) -> list[str]:
    """Return a line where something else ran on the servers' core for that share of the time."""
    if held_up <= HELD_UP:
        return []
    line = (
        f"- **Something else ran on the servers' core**: a server wanted to run and could not for "
        f"{held_up:.0%} of the time. What it leaves in the caches counts as the server's time."
    )
    return [line]
