"""The cases, one module each. A case is a module with these names:

``TITLE``
    Its heading, for the terminal.
``measure(run: Run) -> dict``
    Starts ours and the peers (``bench.servers.start``) in ``run.rounds`` rounds, best by
    :meth:`Run.alternate`, and returns numbers that are JSON: all that the other functions need.
``document(result) -> str``
    The Markdown for docs/benchmarks.md, between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``.
``draw(result, path) -> None``
    The figure docs/images/bench-NAME.svg, which ``document`` may show.
``summarize_for_readme(result, language) -> str``
    Optional: the block of the same markers in README.md (``en``) and README.zh-TW.md (``zh-TW``), which both
    must have then.
``check(run) -> list[str]``
    Of those in ``CHECKED``: what is wrong with the ratios between ours and a peer on a short form of it, with
    bounds so wide that a busy machine does not matter.

``measure`` bounds everything it does in time and count, and leaves nothing running.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.servers import Peer

NAMES = ("wait", "fetch", "items", "query", "overhead", "overload", "watch", "tasks", "scale")
CHECKED = ("overhead", "watch")


T = TypeVar("T")


def rotate(names: Sequence[T], number: int) -> list[T]:
    """Return them beginning with another one for each number."""
    first = number % max(1, len(names))
    return [*names[first:], *names[:first]]


@dataclass(frozen=True, slots=True)
class Run:
    """How to measure.

    Attributes:
        short: A few seconds, to see that the case works; its numbers mean nothing.
        rounds: How often ours is measured, and every peer that is compared with it round by round.
        only: Names (parts of names) of the peers to run; empty for all.
        data_dir: A folder for the embedded PostgreSQL, removed at the end.
        files: How many files a process may open.
        say: Reports progress.
    """

    short: bool
    rounds: int
    only: Sequence[str]
    data_dir: Path
    files: int
    say: Callable[[str], None]

    def choose(self, peers: Sequence[Peer]) -> list[Peer]:
        """Return those of the peers that are wanted."""
        return [
            peer for peer in peers if not self.only or any(part in peer.name.lower() for part in self.only)
        ]

    def line_up(self, peers: Sequence[Peer], number: int, once: Sequence[Peer] = ()) -> list[Peer]:
        """Return those that have a part in a round, counted from 0, each round beginning with another.

        Those of ``once`` have a part in the first round only: peers that no target compares with ours.
        """
        return rotate([peer for peer in peers if not number or peer not in once], number)

    def alternate(
        self, peers: Sequence[Peer], measure: Callable[[Peer], dict[str, Any]], *, once: Sequence[Peer] = ()
    ) -> dict[str, list[dict[str, Any]]]:
        """Measure all peers once a round, as :meth:`line_up` has them; return rounds by name."""
        chosen = self.choose(peers)
        results: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in chosen}
        for number in range(self.rounds):
            for peer in self.line_up(chosen, number, once):
                self.say(f"round {number + 1} of {self.rounds}: {peer.name}")
                results[peer.name].append(measure(peer))
        return results
