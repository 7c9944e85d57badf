"""What everything that `freeloop run` does costs a request of a plain JSON route, and a waiting one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import Run
from bench.load_closed import Callers
from bench.memory import measure_waiting, warm_up
from bench.report import spread, summarize, table
from bench.servers import OUR_LISTENING, Peer, Running, run_freeloop, run_uvicorn, start

TITLE = "What a request pays for it"
CALLERS = 32
TARGET_US, TARGET_KB = 10, 2  # what all this may cost at most
_APP = "bench.peers.json_route:app"
_PATH, _WAITING_PATH = "/item", "/wait"
_WARM_UP = 1_000
_HELD_UP = 0.05  # of the time: a server that is kept from its core so long is slower than it is by itself

PLAIN = Peer("uvicorn", run_uvicorn(_APP, "--no-access-log"))
SETTLED = Peer("uvicorn, collector as ours", run_uvicorn(_APP, "--no-access-log"))
OURS = Peer(
    "freeloop run",
    run_freeloop(_APP, "--no-access-log", "--deadline", "30", "--server-timing"),
    OUR_LISTENING,
)
_ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {
    PLAIN.name: {},
    SETTLED.name: {"BENCH_SETTLE_MEMORY": "1"},
    OURS.name: {"FREELOOP_DEADLINE_HEADER": "X-Request-Timeout"},
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: ``slices`` of ``count`` requests in turn, and so many waiting for ``wait`` s."""

    slices: int
    count: int
    waiting: int
    wait: float


def measure(run: Run) -> dict[str, Any]:
    sizes = Sizes(2, 500, 500, 0.6) if run.short else Sizes(8, 6_000, min(10_000, run.files - 200), 8.0)
    peers = run.choose((PLAIN, SETTLED, OURS))
    rounds: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
    rates = []
    for number in range(run.rounds):
        run.say(f"round {number + 1} of {run.rounds}: {', '.join(peer.name for peer in peers)} in turn")
        first = number % len(peers)
        turn = [*peers[first:], *peers[:first]]
        slices, rate = _measure_cpu(turn, sizes)
        rates.append(rate)
        for peer in turn:
            run.say(f"round {number + 1} of {run.rounds}: {peer.name}, memory")
            rounds[peer.name].append({**slices[peer.name], "memory": _measure_memory(peer, sizes)})
    return {
        "callers": CALLERS,
        "slices": sizes.slices,
        "count": sizes.count,
        "waiting": sizes.waiting,
        "rate": statistics.median(rates),
        "peers": {name: _summarize(measured) for name, measured in rounds.items()},
        "differences": {
            name: _summarize_differences(measured, rounds[PLAIN.name])
            for name, measured in rounds.items()
            if PLAIN.name in rounds and name != PLAIN.name
        },
    }


def _measure_cpu(peers: list[Peer], sizes: Sizes) -> tuple[dict[str, dict[str, Any]], float]:
    """Start all peers, and load them in turn: what the machine does meanwhile meets all of them alike."""
    measured: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        servers = {peer.name: stack.enter_context(_start(peer)) for peer in peers}
        for name, server in servers.items():
            with Callers(server.port, _PATH, CALLERS) as callers:
                callers.ask(min(_WARM_UP, sizes.count))
            measured[name] = {"full": [], "paced": [], "speed": [], "held_up": [], "failed": 0}
        reference = servers.get(PLAIN.name) or next(iter(servers.values()))
        with Callers(reference.port, _PATH, CALLERS) as callers:
            rate = sizes.count / callers.ask(sizes.count).seconds / 2
        for number in range(sizes.slices):
            first = number % len(peers)
            for kind, pace in (("full", None), ("paced", rate)):
                for peer in [*peers[first:], *peers[:first]]:
                    one = _load(servers[peer.name], sizes.count, pace)
                    numbers = measured[peer.name]
                    numbers[kind].append(one["cpu"] / sizes.count * 1e6)
                    numbers["failed"] += one["failed"]
                    if pace is None:
                        numbers["speed"].append(sizes.count / one["seconds"])
                        numbers["held_up"].append(one["held_up"] / one["seconds"])
    return measured, rate


def _load(server: Running, count: int, rate: float | None) -> dict[str, Any]:
    with Callers(server.port, _PATH, CALLERS) as callers:
        callers.ask(2 * CALLERS)  # the connections are made by then
        server.wait_still()
        before, held_up = server.cpu_clock(), server.held_up()
        answers = callers.ask(count, rate=rate)
        server.wait_still()  # what is done after an answer is part of the work
        return {
            "cpu": server.cpu_clock() - before,
            "held_up": server.held_up() - held_up,
            "seconds": answers.seconds,
            "failed": answers.failed,
        }


def _measure_memory(peer: Peer, sizes: Sizes) -> float | None:
    with _start(peer, sizes.wait) as server:
        warm_up(server, _WAITING_PATH)
        return measure_waiting(server, _WAITING_PATH, sizes.waiting, sizes.wait)


def _start(peer: Peer, wait: float = 2.0) -> AbstractContextManager[Running]:
    return start(peer, {**_ENVIRONMENTS[peer.name], "BENCH_SECONDS": str(wait)})


def _summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    memory = [each["memory"] / 1000 for each in rounds if each["memory"] is not None]
    return {
        "rounds": len(rounds),
        "failed": sum(each["failed"] for each in rounds),
        **{key: summarize([statistics.median(each[key]) for each in rounds]) for key in _MEDIANS},
        "memory": summarize(memory) if memory else None,
    }


_MEDIANS = ("full", "paced", "speed", "held_up")


def _summarize_differences(ours: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Pair what was measured side by side; a round's difference is the median of its pairs."""
    differences: dict[str, Any] = {}
    for key in ("full", "paced"):
        differences[key] = summarize(
            [
                statistics.median(mine - its for mine, its in zip(one[key], other[key], strict=True))
                for one, other in zip(ours, plain, strict=True)
            ]
        )
    memory = [
        (one["memory"] - other["memory"]) / 1000
        for one, other in zip(ours, plain, strict=True)
        if one["memory"] is not None and other["memory"] is not None
    ]
    differences["memory"] = summarize(memory) if memory else None
    return differences


_COLUMNS = (  # key, unit, digits, words, target
    ("full", "µs", 1, "CPU time of a request at full speed", TARGET_US),
    ("paced", "µs", 1, "CPU time of a request at half of that", TARGET_US),
    ("memory", "KB", 2, "memory of a waiting request", TARGET_KB),
)


def document(result: dict[str, Any]) -> str:
    peers, rounds = result["peers"], next(iter(result["peers"].values()))["rounds"]
    plural = "round" if rounds == 1 else "rounds"
    introduction = (
        f"{result['callers']} callers on keep-alive connections, `GET {_PATH}`, {result['slices']} times "
        f"{result['count']:,} requests to each in turn, at full speed and at {result['rate']:,.0f} a second "
        f"(half of what `uvicorn` answered); {result['waiting']:,} requests that wait at once. Median "
        f"of {rounds} {plural}, in brackets the lowest and the highest."
    )
    return "\n\n".join(
        [
            introduction,
            "![CPU time and memory under uvicorn and under freeloop run](images/bench-cost.svg)",
            table(
                ["", "failed", "CPU, µs at full speed", "CPU, µs at half", "KB waiting", "requests/s"],
                [
                    [f"`{name}`" if name != SETTLED.name else "`uvicorn`, collector as ours"]
                    + [f"{peer['failed']:,}"]
                    + [_cell(peer[key], digits) for key, _, digits, _, _ in _COLUMNS]
                    + [_cell(peer["speed"], 0)]
                    for name, peer in peers.items()
                ],
            ),
            _verdicts(result),
        ]
    )


def _verdicts(result: dict[str, Any]) -> str:
    lines = []
    differences = result["differences"]
    for key, unit, digits, words, target in _COLUMNS:
        if OURS.name not in differences or not (more := differences[OURS.name][key]):
            continue
        if more["high"] <= target:
            verdict = "kept"
        elif more["low"] > target:
            verdict = "**missed**"
        else:
            verdict = "kept in some rounds, **missed** in others"
        lines.append(
            f"- What `freeloop run` adds to the {words}: {spread(more, digits)} {unit}; the target, at most "
            f"{target} {unit}, is {verdict}."
        )
    if OURS.name in differences and SETTLED.name in differences:
        share = {
            key: differences[OURS.name][key]["median"] - differences[SETTLED.name][key]["median"]
            for key in ("full", "paced")
        }
        lines.append(
            f"- Without what the collector's settings save: {share['full']:.1f} µs at full speed, "
            f"{share['paced']:.1f} µs at half (against `uvicorn` with the same settings)."
        )
    if (held_up := max(peer["held_up"]["high"] for peer in result["peers"].values())) > _HELD_UP:
        lines.append(
            f"- **Something else ran on the servers' core**: at full speed a server wanted to run and could "
            f"not for {held_up:.0%} of the time. What it leaves in the caches counts as the server's time."
        )
    return "\n".join(lines)


def _cell(summary: dict[str, float] | None, digits: int) -> str:
    return spread(summary, digits) if summary else "not measured"


def summarize_for_readme(result: dict[str, Any], language: str) -> str:
    more = result["differences"][OURS.name]
    cpu, memory = more["full"]["median"], more["memory"]["median"]
    if language == "zh-TW":
        return (
            f"一切開啟時，每個請求多用 {cpu:.1f} µs 的 CPU 時間，"
            f"每個等待中的請求多用 {memory:.1f} KB 記憶體。"
        )
    return (
        f"With everything switched on, a request takes {cpu:.1f} µs more CPU time, and a waiting one "
        f"{memory:.1f} KB more memory."
    )


def draw(result: dict[str, Any], path: Path) -> None:
    from bench.figures import draw_bars, save, take_panels  # noqa: PLC0415 - matplotlib is slow

    figure, panels = take_panels(3, widths=(1, 1, 1))
    titles = ("CPU, µs per request, full speed", "CPU, µs per request, half speed", "KB per waiting request")
    for panel, (key, *_), title in zip(panels, _COLUMNS, titles, strict=True):
        draw_bars(panel, {name: peer[key] for name, peer in result["peers"].items()})
        panel.set_title(title)
    save(figure, path)
