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
_TIMES: Final = (1, 10, 100, 1_000)  # the load, of 100 reads and 50 tasks a second
_BACKLOG: Final = 2_048  # the default of --backlog
_ACQUIRE: Final = 2.0  # s: the default of FREELOOP_DATABASE_ACQUIRE_TIMEOUT
_UNKNOWN: Final = "not measured yet"


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


def _measure_process() -> tuple[float, float]:
    """Return the µs of CPU of a read, and how many reads a second a process answers."""
    micros = _median(_peer("items", "Freeloop")["distinct"], "cpu")
    return micros, _BUSY * 1e6 / micros


def _count_processes(times: int) -> tuple[int, int]:
    """Return the reads a second of so many times the load, and how many processes they need."""
    rate = 100 * times
    return rate, max(1, -(-rate // int(_measure_process()[1])))


def show_scale() -> str:
    """Return processes and connections for a load, from the measured CPU time of a read."""
    micros, a_process = _measure_process()
    query = _read("items")["pgbench"]["median"]
    rows = []
    for times in _TIMES:
        rate, processes = _count_processes(times)
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
    """Return how a change log and a task table behave as they grow, and what it takes to prune the latter."""
    result = _read("tables")
    rows = [
        [f"{each['rows']:,}", f"{each['log_page_ms']:.2f} ms", f"{each['log_bytes']:,.0f}",
         f"{each['task_page_ms']:.2f} ms", f"{each['task_bytes']:,.0f}",
         _deletion(each, each["rows"]), _drop(each)]
        for each in result["steps"]
    ]  # fmt: skip
    header = [
        "Rows", "A page of the change log", "Bytes a row", "A page of the tasks", "Bytes a row",
        "All tasks deleted", "Dropped as one partition",
    ]  # fmt: skip
    version = result.get("versions", {}).get("PostgreSQL") or "18"
    return table(header, rows) + (
        f"\n\nMeasured {result['date']} by `python3 run.py bench tables`, PostgreSQL {version}. "
        "All deleted is what a task takes in a batch of 1,000, times the rows."
    )


def _deletion(step: Mapping[str, Any], rows: int) -> str:
    """Return the time to delete so many tasks."""
    micros = step.get("task_deleted_us")
    return _UNKNOWN if micros is None else f"{rows * micros / 1e6:,.1f} s"


def _drop(step: Mapping[str, Any]) -> str:
    """Return the time to drop the rows of the step as one partition."""
    milliseconds = step.get("partition_dropped_ms")
    return _UNKNOWN if milliseconds is None else f"{milliseconds:,.1f} ms"


def show_pruning() -> str:
    """Return what deleting old tasks takes for a rate of them."""
    last = _read("tables")["steps"][-1]
    micros = last.get("task_deleted_us")
    rows = []
    for rate in (1, 10, 100, 1_000):
        share = _UNKNOWN if micros is None else f"{100 * rate * micros / 1e6:,.2f} %"
        rows.append([f"{rate:,}", share, f"{rate * 86_400:,}", _deletion(last, rate * 86_400)])
    return table(
        ["Tasks a second", "Deleting them, of a connection's time", "Tasks of a day", "Deleted at once"], rows
    )


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


def show_task_rates() -> str:
    """Return what a rate of tasks needs, from what a worker and PostgreSQL were measured to execute."""
    if not (RESULTS / "tasks.json").exists():
        return "Not measured yet: `python3 run.py bench tasks`."
    ours = _peer("tasks", "Freeloop")
    rate, micros = _median(ours, "drained"), _median(ours, "cpu_us")
    rows = []
    for times in _TIMES:
        tasks = 50 * times
        workers = math.ceil(tasks * micros / 1e6 / _BUSY)
        cores = math.ceil(tasks / (_BUSY * rate))
        day = f"{tasks * 86_400 / 1e6:,.1f} million"
        rows.append([f"{times:,}×", f"{tasks:,}", day, f"{workers:,}", f"{cores:,}"])
    head = (
        f"A worker on one core and PostgreSQL on another execute {rate:,.0f} tasks a second that do nothing, "
        f"and the worker uses {micros:,.0f} µs of CPU for each, {rate * micros / 1e6:.0%} of its core. With "
        "half of each core left for peaks:\n\n"
    )
    header = ["Load", "Tasks a second", "A day", "Workers (one core each)", "Cores of PostgreSQL"]
    return head + table(header, rows)


def show_queues() -> str:
    """Return how full the queues get with the load, from what a read and a row were measured to take."""
    bytes_a_task = _read("tables")["steps"][-1]["task_bytes"]
    rows = []
    for times in _TIMES:
        rate, processes = _count_processes(times)
        each = rate / processes
        waiting = 50 * times * 3_600
        rows.append(
            [f"{times:,}×", f"{processes:,}", f"{each:,.0f}", f"{_BACKLOG / each:,.1f} s",
             f"{each * _ACQUIRE:,.0f}", f"{waiting:,}", f"{waiting * bytes_a_task / 1e9:,.2f} GB"]
        )  # fmt: skip
    header = [
        "Load", "Processes", "Requests/s of each", f"Its {_BACKLOG:,} places before accept are full after",
        f"Requests that come while one waits for a connection ({_ACQUIRE:g} s)",
        "Tasks that wait after an hour without a worker",
        "On disk",
    ]  # fmt: skip
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
    "pruning": show_pruning,
    "task-rates": show_task_rates,
    "queues": show_queues,
    "detectors": show_detectors,
}
