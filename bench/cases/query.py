"""One query after the other without HTTP: what ``Database.fetch`` adds to asyncpg, and what JSON costs."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from bench.cases import Run
from bench.machine import SERVER_CORE, on_core
from bench.postgresql import Shop, find_versions, open_shop
from bench.report import judge, name_versions, say_rounds, spread, summarize, table
from bench.servers import ROOT

TITLE = "One query"
OURS = "Database.fetch"
# What the page calls the ways of bench.peers.query_loop.
_NAMES = {
    "ours": OURS,
    "pool": "asyncpg's pool",
    "lasting pool": "asyncpg's pool, no reset",
    "connection": "an asyncpg connection",
}
# Likewise, for JSON.
_JSON = {
    "PostgreSQL": "`Database.fetch_json`: PostgreSQL makes it",
    "orjson": "rows through orjson",
    "Pydantic": "rows through a Pydantic model",
}
_SIZES = (20, 200)
_ITEMS = 2_000
_TARGET = 1.1  # times the duration with bare asyncpg, at most


Taken: TypeAlias = dict[str, list[tuple[float, float]]]
"""As of bench.peers.query_loop."""


def measure(run: Run) -> dict[str, Any]:
    slices, count = (2, 100) if run.short else (40, 500)
    done = []
    with open_shop(run.data_dir, _ITEMS) as shop:
        for number in range(run.rounds):
            run.say(f"round {number + 1} of {run.rounds}: {', '.join(_NAMES.values())} in turn")
            done.append(_run_loop(shop, slices, count))
    taken: list[dict[str, Taken]] = [each["taken"] for each in done]
    rounds = [each["rows"] for each in taken]
    return {
        "slices": slices,
        "count": count,
        "rounds": len(rounds),
        "peak_mb": summarize([each["peak_mb"] for each in done]),
        "versions": {"asyncpg": version("asyncpg"), **find_versions()},
        "peers": {name: _summarize(rounds, way) for way, name in _NAMES.items()},
        "ratios": {
            name: {
                key: summarize(
                    [
                        statistics.median(
                            mine[place] / its[place]
                            for mine, its in zip(each["ours"], each[way], strict=True)
                        )
                        for each in rounds
                    ]
                )
                for place, key in enumerate(("wall", "cpu"))
            }
            for way, name in _NAMES.items()
            if way != "ours"
        },
        "json": {
            str(rows): {way: _summarize([each[f"JSON of {rows}"] for each in taken], way) for way in _JSON}
            for rows in _SIZES
        },
    }


def _summarize(rounds: list[Taken], way: str) -> dict[str, dict[str, float]]:
    """Return the microseconds of a query, and those of CPU time."""
    return {
        key: summarize([statistics.median(one[place] for one in each[way]) * 1e6 for each in rounds])
        for place, key in enumerate(("wall", "cpu"))
    }


def _run_loop(shop: Shop, slices: int, count: int) -> dict[str, Any]:
    """Return what ``bench.peers.query_loop`` prints."""
    with on_core(SERVER_CORE):
        done = subprocess.run(
            [sys.executable, "-m", "bench.peers.query_loop", str(slices), str(count)],
            cwd=ROOT,
            env={**os.environ, **shop.environment},
            stdout=subprocess.PIPE,
            timeout=300,
            check=True,
        )
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def document(result: dict[str, Any]) -> str:
    introduction = (
        f"{result['slices']} times {result['count']} queries of 20 rows, one after the other, each way in "
        f"turn. {say_rounds(result['rounds'])}"
    )
    ratios = result["ratios"]
    rows = [
        [
            f"`{name}`" if name == OURS else name,
            spread(peer["wall"], 0),
            spread(peer["cpu"], 0),
            spread(ratios[name]["wall"], 2) if name in ratios else "",
            spread(ratios[name]["cpu"], 2) if name in ratios else "",
        ]
        for name, peer in result["peers"].items()
    ]
    header = ["", "µs a query", "CPU, µs", "ours takes", "ours takes, CPU"]
    return "\n\n".join(
        [
            introduction,
            "![Duration and CPU time of one query](images/bench-query.svg)",
            table(header, rows),
            "\n".join(_verdict(name, each["wall"]) for name, each in ratios.items()),
            *_document_json(result["json"]),
            *_document_memory(result),
            *name_versions(result),
        ]
    )


def _document_json(result: dict[str, Any]) -> list[str]:
    rows = [
        [said, *(spread(result[str(size)][way][key], 0) for size in _SIZES for key in ("wall", "cpu"))]
        for way, said in _JSON.items()
    ]
    header = ["", *(f"{what}, {size} rows" for size in _SIZES for what in ("µs", "CPU, µs"))]
    introduction = (
        "The same page as JSON, the three ways there are to make it. The CPU time is that of the process; "
        "what PostgreSQL takes is in the duration only."
    )
    return [introduction, table(header, rows)]


def _document_memory(result: dict[str, Any]) -> list[str]:
    if not (peak := result.get("peak_mb")):  # results of before have none
        return []
    return [f"The process, which has all these ways in it, took {spread(peak, 0)} MB of memory at most."]


def _verdict(name: str, ratio: dict[str, float]) -> str:
    return (
        f"- Against {name}: {spread(ratio, 2)} times as long; the target, at most {_TARGET:g} times, is "
        f"{judge(ratio, _TARGET)}."
    )


def draw(result: dict[str, Any], path: Path) -> None:
    from bench.figures import draw_bars, save, take_panels  # noqa: PLC0415 - matplotlib is slow

    figure, panels = take_panels(2, widths=(1, 1))
    for panel, (key, title) in zip(panels, (("wall", "µs a query"), ("cpu", "CPU, µs a query")), strict=True):
        draw_bars(
            panel, {name.replace(" pool", "\npool"): peer[key] for name, peer in result["peers"].items()}
        )
        panel.set_title(title)
    save(figure, path)
