"""Numbers of the docs that come from bench/results: no page has a typed one.

A page marks their place with ``<!-- measured:NAME -->`` and ``<!-- /measured:NAME -->``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from handbook.markdown import table

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
RESULTS: Final = ROOT / "bench" / "results"
_BLOCK: Final = re.compile(r"(<!-- measured:([\w-]+) -->\n).*?(<!-- /measured:\2 -->)", re.DOTALL)
_CONNECTIONS: Final = 10  # of a process: the default of FREELOOP_DATABASE_POOL_SIZE
_LISTENER: Final = 1
_BUSY: Final = 0.5  # the share of a core that is planned for: what is above is for peaks


def write(folder: Path = DOCS) -> list[str]:
    """Write the numbers into the pages; return the pages that have changed."""
    changed = []
    for path in sorted(folder.rglob("*.md")):
        text = path.read_text("utf-8")
        new = fill(text)
        if new != text:
            path.write_text(new, "utf-8")
            changed.append(f"docs/{path.relative_to(folder).as_posix()}")
    return changed


def fill(text: str) -> str:
    """Return a page with the numbers of its blocks.

    Raises:
        LookupError: It has a block that is not known here, or a result has no longer what the block shows.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def _read(case: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{case}.json").read_text("utf-8"))  # type: ignore[no-any-return]


def _peer(case: str, name: str) -> dict[str, Any]:
    peers = _read(case)["peers"]
    if name not in peers:
        raise LookupError(f"bench/results/{case}.json: expected the peer '{name}', found {', '.join(peers)}")
    return peers[name]  # type: ignore[no-any-return]


def _median(peer: Mapping[str, Any], key: str) -> float:
    return float(peer[key]["median"])


def show_wait() -> str:
    """Return what becomes of requests that only wait: awaited, and in threads."""
    result = _read("wait")
    rows = [
        [name, f"{peer['count']:,}", f"{_median(peer, 'p50'):.1f} s", f"{_median(peer, 'slowest'):.1f} s"]
        for name, peer in result["peers"].items()
        if name in {"Freeloop", "FastAPI, `async def`", "FastAPI, `def`"}
    ]
    head = f"Requests at once that each wait for {result['seconds']:g} s, one process on one core:\n\n"
    return head + table(["", "Requests at once", "Half answered after", "All answered after"], rows)


def show_items() -> str:
    """Return what reading 20 rows costs with `databases` and here."""
    rows = [
        [name, *(f"{_median(_peer('items', name)[kind], measure):,.0f}" for kind in ("distinct", "identical")
                 for measure in ("rate", "cpu"))]
        for name in ("`databases`", "Freeloop")
    ]  # fmt: skip
    header = ["", "Distinct reads/s", "CPU, µs each", "Identical reads/s", "CPU, µs each"]
    return table(header, rows)


def show_overload() -> str:
    """Return what is answered in time at ten times the load."""
    rows = []
    for name in ("uvicorn", "freeloop run"):
        step = next(each for each in _peer("overload", name)["steps"] if each["load"] == 10)
        rows.append(
            [f"`{name}`", f"{100 * _median(step, 'share'):.0f} %", f"{100 * _median(step, 'shed'):.0f} %"]
        )
    return table(["Ten times the load", "Answered in time, of what is possible", "Refused with 503"], rows)


def show_scale() -> str:
    """Return processes and connections for a load, from the measured CPU time of a read."""
    micros = _median(_peer("items", "Freeloop")["distinct"], "cpu")
    a_process = _BUSY * 1e6 / micros
    query = _read("items")["pgbench"]["median"]
    rows = []
    for times in (1, 10, 100, 1000):
        rate = 100 * times
        processes = max(1, -(-rate // int(a_process)))
        connections = processes * (_CONNECTIONS + _LISTENER)
        cores = math.ceil(rate / (_BUSY * query))
        rows.append([f"{times:,}×", f"{rate:,}", f"{processes:,}", f"{connections:,}", f"{cores:,}"])
    head = (
        f"A `GET /items` of 20 rows takes {micros:,.0f} µs of CPU, so a process whose core is busy for "
        f"{_BUSY:.0%} of the time answers {a_process:,.0f} a second. "
        f"A core of PostgreSQL has {query:,.0f} answers a second to that query.\n\n"
    )
    return head + table(
        ["Load", "Reads/s", "Processes (one core each)", "Connections to PostgreSQL", "Cores of PostgreSQL"],
        rows,
    )


def show_waiting_memory() -> str:
    """Return the memory of requests that wait, from what each takes."""
    kilobytes = _median(_peer("overhead", "freeloop run"), "memory")
    rows = [
        [f"{count:,}", f"{count * kilobytes / 1e6:,.2f} GB"] for count in (1_000, 10_000, 100_000, 1_000_000)
    ]
    head = f"A request that waits takes {kilobytes:.1f} KB in `freeloop run`:\n\n"
    return head + table(["Requests that wait at once", "Memory, all processes together"], rows)


def show_tables() -> str:
    """Return how a change log and a task table behave as they grow."""
    result = _read("tables")
    rows = [
        [f"{each['rows']:,}", f"{each['log_page_ms']:.2f} ms", f"{each['log_bytes']:,.0f}",
         f"{each['task_page_ms']:.2f} ms", f"{each['task_bytes']:,.0f}",
         f"{each['task_deleted_us']:.1f} µs"]
        for each in result["steps"]
    ]  # fmt: skip
    header = [
        "Rows", "A page of the change log", "Bytes a row", "A page of the tasks", "Bytes a row",
        "A task deleted",
    ]  # fmt: skip
    return table(header, rows) + f"\n\nMeasured {result['date']} by `python -m bench.tables`, PostgreSQL 18."


def show_growth() -> str:
    """Return what the rows of a day and of a week take, from what a row was measured to take."""
    last = _read("tables")["steps"][-1]
    rows = []
    for rate in (1, 10, 100, 1_000):
        day, week = rate * 86_400, rate * 604_800
        log, tasks = day * last["log_bytes"] / 1e9, week * last["task_bytes"] / 1e9
        rows.append([f"{rate:,}", f"{day:,}", f"{log:,.2f} GB", f"{week:,}", f"{tasks:,.2f} GB"])
    header = [
        "Writes, and tasks, a second",
        "Rows of the log in a day",
        "On disk",
        "Tasks in a week",
        "On disk",
    ]
    return table(header, rows)


def show_detectors() -> str:
    """Return what each detector says of each way to block, and of what only looks like one."""
    if not (RESULTS / "watch.json").exists():
        return "Not measured yet: `python3 run.py bench watch`."
    result = _read("watch")
    peers = result["peers"]

    def judge(peer: Mapping[str, Any], way: str) -> str:
        if way in peer["missed"]:
            return "–"
        return "found" if way in peer["unnamed"] else "line"

    rows = [[f"`{way}`", *(judge(peer, way) for peer in peers.values())] for way in result["ways"]]
    rows += [
        [f"no block: `{path}`", *("wrong" if path in peer["false"] else "quiet" for peer in peers.values())]
        for path in result["innocent"]
    ]
    return table(["", *peers], rows)


BLOCKS: Final[Mapping[str, Callable[[], str]]] = {
    "wait": show_wait,
    "items": show_items,
    "overload": show_overload,
    "scale": show_scale,
    "waiting-memory": show_waiting_memory,
    "tables": show_tables,
    "growth": show_growth,
    "detectors": show_detectors,
}
