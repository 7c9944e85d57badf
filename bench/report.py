"""Numbers into words: medians with their spread, tables, and the marked blocks of the pages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the lowest and the highest of the rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the value that ``percent`` of the sorted values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(summary: dict[str, float], digits: int) -> str:
    """Return ``2.91 (2.88–3.02)``."""
    return f"{summary['median']:,.{digits}f} ({summary['low']:,.{digits}f}–{summary['high']:,.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column text, the others numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def compare(
    summaries: dict[str, dict[str, float]], ours: str, what: str, unit: str, digits: int
) -> list[str]:
    """Say in words, for a measure where less is better, who is ahead of ours and who is behind.

    A difference counts where the rounds of the two do not overlap; otherwise it is called none.
    """
    mine = summaries[ours]
    verdicts = []
    for name, other in summaries.items():
        if name == ours:
            continue
        shown = [f"{each['median']:,.{digits}f}" for each in (mine, other)]
        if shown[0] == shown[1]:
            verdict = f"{ours} and {name} do not differ"
        elif other["high"] < mine["low"]:
            verdict = f"**{name} is ahead**"
        elif other["low"] > mine["high"]:
            verdict = f"{ours} is ahead of {name}"
        else:
            verdict = f"{ours} and {name} do not differ by more than the spread"
        verdicts.append(f"{what}: {verdict} ({shown[0]} against {shown[1]} {unit}).")
    return verdicts


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


def replace_block(page: Path, case: str, text: str) -> bool:
    """Put ``text`` between the markers of ``case``; say whether the page has them."""
    begin, end = f"<!-- bench:{case} -->", f"<!-- /bench:{case} -->"
    if not page.exists() or begin not in (content := page.read_text("utf-8")) or end not in content:
        return False
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", "utf-8")
    return True


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


def say_rounds(rounds: int) -> str:
    """Return the sentence that explains the numbers of a table."""
    plural = "round" if rounds == 1 else "rounds"
    return f"Median of {rounds} {plural}, in brackets the lowest and the highest."
