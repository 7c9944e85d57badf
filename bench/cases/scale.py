"""How cost grows: with worker processes, with the table behind a page, and with requests that wait."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cases import Run
from bench.family import Family
from bench.load import Burst
from bench.load_closed import Callers
from bench.memory import measure_waiting, warm_up
from bench.postgresql import add_items, find_versions, open_shop
from bench.report import name_versions, percentile, say_rounds, spread, summarize, table
from bench.servers import OUR_LISTENING, OURS, Peer, run_freeloop, start
from bench.slices import list_numbers, load, summarize_rounds, warn_of_others

TITLE = "How cost grows"
CALLERS, ROWS = 32, 20
WORKERS = (1, 2, 4)
ITEMS = (1, 100, 10_000, 100_000)
WAITING = (1, 10, 100, 1_000, 10_000)
_LEAST = 100  # what fewer requests take is lost in what a process does anyhow
_JSON_APP = "bench.peers.json_route:app"


def measure(run: Run) -> dict[str, Any]:
    slices, count = (1, 300) if run.short else (3, 4_000)
    items = ITEMS[:2] if run.short else ITEMS
    waiting = [number for number in WAITING if number <= (100 if run.short else run.files - 200)]
    workers: dict[int, list[dict[str, float]]] = {number: [] for number in WORKERS}
    pages: dict[str, list[dict[str, Any]]] = {}
    waits: dict[int, list[dict[str, Any]]] = {number: [] for number in waiting}
    for number in range(run.rounds):
        for processes in WORKERS:
            run.say(f"round {number + 1} of {run.rounds}: {processes} workers")
            workers[processes].append(_measure_workers(processes, slices * count))
        for name, numbers in _measure_pages(run, number, items, slices, count).items():
            pages.setdefault(name, []).append(numbers)
        for together in waiting:
            run.say(f"round {number + 1} of {run.rounds}: {together} waiting requests")
            waits[together].append(_measure_waiting(run, together))
    return {
        "callers": CALLERS,
        "rows": ROWS,
        "rounds": run.rounds,
        "count": slices * count,
        "versions": find_versions(),
        "workers": {str(number): _over_rounds(measured) for number, measured in workers.items()},
        "pages": {name: summarize_rounds(measured) for name, measured in pages.items()},
        "waiting": {str(number): _over_rounds(measured) for number, measured in waits.items()},
    }


def _over_rounds(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: summarize([each[key] for each in rounds])
        if all(each[key] is not None for each in rounds)
        else None
        for key in rounds[0]
    }


def _measure_workers(processes: int, count: int) -> dict[str, float]:
    """Measure all processes of a service together; they share the servers' core."""
    command = run_freeloop(_JSON_APP, "--no-access-log", "--workers", str(processes))
    with start(Peer(f"{processes} workers", command, OUR_LISTENING), {}) as server:
        family = Family(server.process.pid)
        with Callers(server.port, "/item", CALLERS) as callers:
            callers.ask(1_000)
            before = family.cpu_seconds()
            answers = callers.ask(count)
            server.wait_still()
            used = family.cpu_seconds() - before
        return {
            "rate": answers.count / answers.seconds,
            "cpu": used / count * 1e6,
            "memory_mb": family.memory() / 1e6,
            "peak_mb": family.peak_memory() / 1e6,
            "processes": float(family.count()),
        }


def _measure_pages(
    run: Run, number: int, items: Sequence[int], slices: int, count: int
) -> dict[str, dict[str, Any]]:
    """Measure the first and the last page of a table that grows; each caller another one."""
    measured = {}
    there = items[0]
    with (
        open_shop(run.data_dir / f"items-{number}", there) as shop,
        start(OURS, shop.environment) as server,
    ):
        for size in items:
            run.say(f"round {number + 1} of {run.rounds}: {size:,} items")
            add_items(shop, size - there)
            there = size
            paths = _list_paths(size)
            for place, asked in paths.items():
                load(server, asked, CALLERS, 5 * CALLERS)
                done = [load(server, asked, CALLERS, count // 4) for _ in range(slices)]
                measured[f"{size:,} items, {place}"] = list_numbers(done)
    return measured


def _list_paths(size: int) -> dict[str, list[str]]:
    """Return pages near the beginning and near the end, a different one for each caller."""
    if size <= ROWS:
        return {"the only page": [f"/items?limit={ROWS}"]}
    places = range(1, CALLERS + 1)
    return {
        "first pages": [f"/items?limit={ROWS}&after={number}" for number in places],
        "last pages": [f"/items?limit={ROWS}&after={size - ROWS - number}" for number in places],
    }


def _measure_waiting(run: Run, together: int) -> dict[str, Any]:
    seconds = 0.5 if run.short else 2.0 if together < WAITING[-1] else 8.0
    with start(OURS, {"FREELOOP_DATA_DIR": str(run.data_dir / "waiting")}) as server:
        path = f"/async-task?seconds={seconds}"
        warm_up(server, "/async-task?seconds=0")
        memory = measure_waiting(server, path, together, seconds) if together >= _LEAST else None
        with Burst(server.port, path, together, timeout=60) as burst:
            burst.connect()
            server.wait_still()
            before = server.cpu_clock()
            burst.send()
            burst.collect()
            server.wait_still()
            used = server.cpu_clock() - before
        return {
            "memory_kb": None if memory is None else memory / 1000,
            "cpu": used / together * 1e6 if together >= _LEAST else None,
            "peak_mb": server.peak_memory() / 1e6,
            "late_ms": 1000 * (percentile(burst.latencies, 99) - seconds) if burst.latencies else None,
        }


def document(result: dict[str, Any]) -> str:
    workers = [
        [
            number,
            spread(each["rate"], 0),
            spread(each["cpu"], 0),
            spread(each["memory_mb"], 0),
            spread(each.get("peak_mb"), 0),
            f"{each['processes']['median']:.0f}",
        ]
        for number, each in result["workers"].items()
    ]
    pages = [
        [name, spread(each["rate"], 0), spread(each["cpu"], 0), spread(each.get("peak_mb"), 0)]
        for name, each in result["pages"].items()
    ]
    waiting = [
        [
            f"{int(number):,}",
            spread(each["late_ms"], 0),
            spread(each["cpu"], 0),
            spread(each["memory_kb"], 1),
            spread(each.get("peak_mb"), 0),
        ]
        for number, each in result["waiting"].items()
    ]
    worst = max(each["held_up"]["high"] for each in result["pages"].values())
    return "\n\n".join(
        [
            say_rounds(result["rounds"]),
            "![How cost grows](images/bench-scale.svg)",
            (
                f"Workers of `freeloop run` on one core, {result['callers']} callers, `GET /item`; memory is "
                "that of all processes after the load, and at most with what they share counted for each:"
            ),
            table(
                ["workers", "answers/s", "CPU, µs an answer", "memory, MB", "at most, MB", "processes"],
                workers,
            ),
            f"`GET /items` with {result['rows']} rows, each caller another page:",
            table(["", "answers/s", "CPU, µs an answer", "memory at most, MB"], pages),
            "Requests that wait at once:",
            table(
                [
                    *("requests", "p99 later than the wait, ms", "CPU, µs a request", "memory, KB a request"),
                    "memory at most, MB",
                ],
                waiting,
            ),
            *warn_of_others(worst),
            *name_versions(result),
        ]
    )


def draw(result: dict[str, Any], path: Path) -> None:
    from bench.figures import draw_bars, draw_lines, save, take_panels  # noqa: PLC0415 - matplotlib is slow

    figure, (workers, pages, waiting) = take_panels(3, widths=(1, 1.4, 1))
    draw_bars(workers, {number: each["cpu"] for number, each in result["workers"].items()})
    workers.set_title("workers: CPU, µs an answer")
    lines: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for name, each in result["pages"].items():
        size, _, place = name.partition(" items, ")
        lines.setdefault(place, []).append((float(size.replace(",", "")), each["cpu"]))
    draw_lines(pages, lines)
    pages.set_ylim(bottom=0)
    pages.legend(frameon=False, fontsize=8)
    pages.set_title("items in the table: CPU, µs an answer")
    points = [(float(number), each["cpu"]) for number, each in result["waiting"].items() if each["cpu"]]
    draw_lines(waiting, {"requests": points})
    waiting.set_ylim(bottom=0)
    waiting.set_title("waiting at once: CPU, µs a request")
    save(figure, path)
