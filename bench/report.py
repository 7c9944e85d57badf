"""Numbers into words: medians with their spread, tables, and the marked blocks of the pages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the lowest and the highest of the rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the value that ``percent`` of the sorted values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(summary: dict[str, float] | None, digits: int, *, factor: float = 1.0) -> str:
    """Return ``2.91 (2.88–3.02)``; a dash where it was not measured."""
    if summary is None:
        return "–"
    median, low, high = (f"{factor * summary[key]:,.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} ({low}–{high})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column text, the others numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def compare(
    summaries: dict[str, dict[str, float]], ours: str, what: str, unit: str, digits: int
) -> list[str]:
    """Say in a sentence, for a measure where less is better, who is ahead of ours and who is behind.

    A difference counts where the rounds of the two do not overlap and the digits that are shown differ;
    otherwise the two are level.

    Returns:
        The sentence; nothing where there is nobody beside ours.
    """
    said = _rank(summaries, ours, digits, lambda one, other: one["high"] < other["low"])
    return [f"{what}, in {unit}: {said}."] if said else []


def compare_most(summaries: dict[str, dict[str, float]], ours: str, what: str, digits: int = 0) -> list[str]:
    """Say the same as :func:`compare` for a measure where more is better, such as answers a second."""
    said = _rank(summaries, ours, digits, lambda one, other: one["low"] > other["high"])
    return [f"{what}: {said}."] if said else []


def _rank(
    summaries: dict[str, dict[str, float]],
    ours: str,
    digits: int,
    is_better: Callable[[dict[str, float], dict[str, float]], bool],
) -> str:
    shown = {name: f"{each['median']:,.{digits}f}" for name, each in summaries.items()}
    mine = summaries[ours]
    ahead, behind, alike = [], [], []
    for name, other in summaries.items():
        if name == ours:
            continue
        differ = shown[name] != shown[ours]
        if differ and is_better(other, mine):
            group = ahead
        elif differ and is_better(mine, other):
            group = behind
        else:
            group = alike
        group.append(f"{name} ({shown[name]})")
    sides = []
    if behind:
        sides.append(f"{ours} ({shown[ours]}) is ahead of {_join(behind)}")
    if ahead:
        than = "it" if sides else f"{ours} ({shown[ours]})"
        sides.append(f"**{_join(ahead)} {'is' if len(ahead) == 1 else 'are'} ahead** of {than}")
    if alike:
        than = "it" if sides else f"{ours} ({shown[ours]})"
        sides.append(f"{_join(alike)} {'is' if len(alike) == 1 else 'are'} level with {than}")
    return "; ".join(sides)


def _join(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def name_versions(result: Mapping[str, Any]) -> list[str]:
    """Return a paragraph with the versions of what a case used beside the machine's packages.

    Nothing where the result has none: those of before had not.
    """
    versions = [f"{name} {number}" for name, number in result.get("versions", {}).items() if number]
    return [f"With {', '.join(versions)}."] if versions else []


def describe_machine(machine: dict[str, Any]) -> str:
    """Return one paragraph."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    cores = (
        "the server on one core, the load generator on another"
        if machine["pinned"]
        else "server and load generator could **not** be given a core each"
    )
    return (
        f"Measured {machine['date']} on {machine['cpu']}, {machine['cores']} cores ({cores}), "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, Python {machine['python']}; {packages}. "
        f"Load average before the run: {machine['load_average']}."
    )


def has_block(page: Path, case: str) -> bool:
    """Say whether a page has the markers of ``case``, in their order."""
    begin, end = _mark(case)
    return page.exists() and end in page.read_text("utf-8").partition(begin)[2]


def replace_block(page: Path, case: str, text: str) -> bool:
    """Put ``text`` between the markers of ``case``; say whether the page has them."""
    if not has_block(page, case):
        return False
    begin, end = _mark(case)
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", "utf-8")
    return True


def _mark(case: str) -> tuple[str, str]:
    return f"<!-- bench:{case} -->", f"<!-- /bench:{case} -->"


def judge(measured: dict[str, float], target: float) -> str:
    """Return whether a target, the most that may be, was kept in all rounds."""
    if measured["high"] <= target:
        return "kept"
    if measured["low"] > target:
        return "**missed**"
    return "kept in some rounds, **missed** in others"


def judge_least(measured: dict[str, float], target: float) -> str:
    """Return whether a target, the least that may be, was kept in all rounds."""
    if measured["low"] >= target:
        return "kept"
    if measured["high"] < target:
        return "**missed**"
    return "kept in some rounds, **missed** in others"


def say_rounds(rounds: int, peers: Mapping[str, Any] | None = None) -> str:
    """Return the sentence that explains the numbers of a table; ``peers`` as of :func:`say_once`."""
    plural = "round" if rounds == 1 else "rounds"
    return (
        f"Median of {rounds} {plural}{say_once(rounds, peers or {})}, in brackets the lowest and the highest."
    )


def say_once(rounds: int, peers: Mapping[str, Any]) -> str:
    """Return in brackets those of ``peers`` that had one round where others had more; or nothing.

    Args:
        rounds: How many the others had.
        peers: By name, each with its ``rounds``; results of before may have none.
    """
    once = [name for name, peer in peers.items() if peer.get("rounds", rounds) < rounds]
    return f" (one round of {'; '.join(once)})" if once else ""
