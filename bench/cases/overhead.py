"""What everything that `freeloop run` does costs a request of a plain JSON route, and a waiting one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from operator import sub, truediv
from pathlib import Path
from typing import Any

from bench.cases import Run
from bench.load_closed import Callers
from bench.memory import measure_waiting, warm_up
from bench.report import judge, say_rounds, spread, summarize, table
from bench.servers import OUR_LISTENING, Peer, Running, run_freeloop, run_uvicorn, start
from bench.slices import Slice, list_numbers, load, load_in_turn, pair, warn_of_others
from bench.viewers import document_viewers, measure_viewers, summarize_viewers
from bench.wrk import Rates, document_by_both, find_version, measure_by_both, summarize_by_both

TITLE = "What a request pays for it"
CALLERS = 32
TARGET_US, TARGET_KB = 10, 2  # what all this may cost at most
MOST = 2.0  # times the CPU time of plain FastAPI that the regression check allows
_APP = "bench.peers.json_route:app"
_PATH, _WAITING_PATH = "/item", "/wait"
_WARM_UP = 1_000
_VIEWED_SECONDS = 1  # of a slice: in each, a page of the console is updated once

RAW = Peer("raw ASGI", run_uvicorn("bench.peers.raw_asgi:app", "--no-access-log"))
PLAIN = Peer("uvicorn", run_uvicorn(_APP, "--no-access-log"))
SETTLED = Peer("uvicorn, collector as ours", PLAIN.command)
KIT = Peer("uvicorn, with the kit", run_uvicorn("bench.peers.json_route_kit:app", "--no-access-log"))
OURS = Peer("freeloop run", run_freeloop(_APP, "--no-access-log"), OUR_LISTENING)
BARE = Peer("freeloop run, without all of these", OURS.command, OUR_LISTENING)
_ON = {
    "FREELOOP_ACCESS_LOG": "false",
    "FREELOOP_DEADLINE": "30",
    "FREELOOP_DEADLINE_HEADER": "X-Request-Timeout",
    "FREELOOP_SERVER_TIMING": "true",
    "FREELOOP_WATCH": "true",
}
# What can be switched off, and how.
_PARTS: Mapping[str, Mapping[str, str]] = {
    "Server-Timing": {"FREELOOP_SERVER_TIMING": "false"},
    "deadline": {"FREELOOP_DEADLINE": "none", "FREELOOP_DEADLINE_HEADER": ""},
    "watchdog": {"FREELOOP_WATCH": "false"},
}
_WITHOUT = {part: Peer(f"freeloop run, without {part}", OURS.command, OUR_LISTENING) for part in _PARTS}
PEERS = (RAW, PLAIN, SETTLED, KIT, OURS, *_WITHOUT.values(), BARE)
_ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {
    SETTLED.name: {"BENCH_SETTLE_MEMORY": "1"},
    KIT.name: _ON,
    OURS.name: _ON,
    **{peer.name: {**_ON, **_PARTS[part]} for part, peer in _WITHOUT.items()},
    BARE.name: {**_ON, **{name: value for off in _PARTS.values() for name, value in off.items()}},
}
_WITH_MEMORY = {PLAIN.name, SETTLED.name, OURS.name}
_BY_WRK = (RAW, PLAIN, OURS)
_ONCE = (RAW,)  # no target names it


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        slices: How often each peer is loaded, in turn.
        count: Requests of a slice.
        waiting: Requests that wait at once.
        wait: Seconds that they wait.
        by_wrk: Slices of each peer that wrk loads as well.
        viewed: Slices with the console open, and as many without.
    """

    slices: int
    count: int
    waiting: int
    wait: float
    by_wrk: int = 0
    viewed: int = 0


def measure(run: Run) -> dict[str, Any]:
    sizes = (
        Sizes(1, 500, 500, 0.6, by_wrk=1, viewed=1)
        if run.short
        else Sizes(8, 2_400, min(10_000, run.files - 200), 8.0, by_wrk=2, viewed=8)
    )
    peers = run.choose(PEERS)
    rounds: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
    rates, by_both, viewed = [], [], []
    wrk = find_version()
    weighed: set[str] = set()
    for number in range(run.rounds):
        turn = run.line_up(peers, number, _ONCE)
        run.say(f"round {number + 1} of {run.rounds}: {', '.join(peer.name for peer in turn)} in turn")
        measured, rate = _measure_cpu(turn, sizes)
        rates.append(rate)
        for peer in turn:
            memory: float | None = None
            if peer.name in _WITH_MEMORY - weighed:
                run.say(f"round {number + 1} of {run.rounds}: {peer.name}, memory")
                memory = _measure_memory(peer, sizes)
                if memory is not None:  # there was a calm moment; it scatters by less than a hundredth
                    weighed.add(peer.name)
            rounds[peer.name].append({**measured[peer.name], "memory": memory})
        if wrk and not number and (asked := [peer for peer in turn if peer in _BY_WRK]):
            run.say(f"round {number + 1} of {run.rounds}: wrk beside our generator")
            by_both.append(_measure_by_both(asked, sizes))
        if OURS in peers:
            run.say(f"round {number + 1} of {run.rounds}: {OURS.name}, with viewers of the console")
            with _start(OURS) as server:
                viewed.append(measure_viewers(server, _PATH, CALLERS, sizes.viewed, _VIEWED_SECONDS))
    return {
        "callers": CALLERS,
        "slices": sizes.slices,
        "count": sizes.count,
        "waiting": sizes.waiting,
        "rate": statistics.median(rates),
        "peers": {name: _summarize(measured) for name, measured in rounds.items()},
        "differences": _subtract(rounds, PLAIN),
        "parts": {
            part: {key: pair(rounds[OURS.name], rounds[peer.name], key, sub) for key in ("full", "paced")}
            for part, peer in {**_WITHOUT, "all of these": BARE}.items()
            if OURS.name in rounds and peer.name in rounds
        },
        "wrk": {"version": wrk, "peers": summarize_by_both(by_both) if by_both else {}},
        "viewers": summarize_viewers(viewed) if viewed else None,
    }


def check(_: Run) -> list[str]:
    """Return what is wrong with the CPU time of ours, against that of plain FastAPI beside it."""
    measured = _measure_cpu([PLAIN, OURS], Sizes(7, 1_000, 0, 0.0))[0]
    ratio = pair([measured[OURS.name]], [measured[PLAIN.name]], "full", truediv)["median"]
    if ratio <= MOST:
        return []
    line = (
        f"overhead: expected a request of `freeloop run` to take at most {MOST:g} times the CPU time of "
        f"plain FastAPI, it took {ratio:.2f} times"
    )
    return [line]


def _measure_cpu(peers: Sequence[Peer], sizes: Sizes) -> tuple[dict[str, dict[str, Any]], float]:
    """Start all peers, and load them in turn, at full speed and then at half of what plain FastAPI does."""
    with ExitStack() as stack:
        servers = {peer.name: stack.enter_context(_start(peer)) for peer in peers}
        for server in servers.values():
            with Callers(server.port, _PATH, CALLERS) as callers:
                callers.ask(min(_WARM_UP, sizes.count))
        reference = servers.get(PLAIN.name) or next(iter(servers.values()))
        with Callers(reference.port, _PATH, CALLERS) as callers:
            rate = sizes.count / callers.ask(sizes.count).seconds / 2
        full, paced = (
            load_in_turn(list(servers), sizes.slices, partial(_load, servers, sizes.count, pace))
            for pace in (None, rate)
        )
    measured: dict[str, dict[str, Any]] = {}
    for name in servers:
        fast, slow = list_numbers(full[name]), list_numbers(paced[name])
        measured[name] = {
            "full": fast["cpu"],
            "paced": slow["cpu"],
            "speed": fast["rate"],
            "held_up": fast["held_up"],
            "peak_mb": slow["peak_mb"],
            "failed": sum(each.failed for each in (*full[name], *paced[name])),
        }
    return measured, rate


def _measure_by_both(peers: Sequence[Peer], sizes: Sizes) -> Rates:
    with ExitStack() as stack:
        servers = {peer.name: stack.enter_context(_start(peer)) for peer in peers}
        for server in servers.values():
            load(server, _PATH, CALLERS, min(_WARM_UP, sizes.count))
        return measure_by_both(servers, _PATH, CALLERS, sizes.count, sizes.by_wrk)


def _load(servers: Mapping[str, Running], count: int, pace: float | None, name: str) -> Slice:
    return load(servers[name], _PATH, CALLERS, count, rate=pace)


def _measure_memory(peer: Peer, sizes: Sizes) -> float | None:
    with _start(peer, sizes.wait) as server:
        warm_up(server, _PATH)
        used = measure_waiting(server, _WAITING_PATH, sizes.waiting, sizes.wait)
        return None if used is None else used / 1000


def _start(peer: Peer, wait: float = 2.0) -> AbstractContextManager[Running]:
    return start(peer, {**_ENVIRONMENTS.get(peer.name, {}), "BENCH_SECONDS": str(wait)})


def _summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    memory = [each["memory"] for each in rounds if each["memory"] is not None]
    return {
        "rounds": len(rounds),
        "failed": sum(each["failed"] for each in rounds),
        **{
            key: summarize([statistics.median(each[key]) for each in rounds])
            for key in ("full", "paced", "speed", "held_up")
        },
        "memory": summarize(memory) if memory else None,
        "peak_mb": summarize([each["peak_mb"] for each in rounds]),
    }


def _subtract(rounds: Mapping[str, list[dict[str, Any]]], base: Peer) -> dict[str, Any]:
    """Return what the others take more than ``base``."""
    if base.name not in rounds:
        return {}
    differences = {}
    for name, measured in rounds.items():
        if name == base.name:
            continue
        beside = rounds[base.name][: len(measured)]  # who has one round had a part in the first
        memory = [
            one["memory"] - other["memory"]
            for one, other in zip(measured, beside, strict=True)
            if one["memory"] is not None and other["memory"] is not None
        ]
        differences[name] = {
            **{key: pair(measured, beside, key, sub) for key in ("full", "paced")},
            "memory": summarize(memory) if memory else None,
        }
    return differences


_COLUMNS = (  # key, unit, digits, words, target
    ("full", "µs", 1, "CPU time of a request at full speed", TARGET_US),
    ("paced", "µs", 1, "CPU time of a request at half of that", TARGET_US),
    ("memory", "KB", 2, "memory of a waiting request", TARGET_KB),
)


def document(result: dict[str, Any]) -> str:
    peers = result["peers"]
    rounds = max(peer["rounds"] for peer in peers.values())
    introduction = (
        f"{result['callers']} callers on keep-alive connections, `GET {_PATH}`, {result['slices']} times "
        f"{result['count']:,} requests to each in turn, at full speed and at {result['rate']:,.0f} a second "
        f"(half of what `uvicorn` answered); {result['waiting']:,} requests that wait at once, in the first "
        f"round. {say_rounds(rounds, peers)}"
    )
    parts = [
        introduction,
        "![CPU time and memory under uvicorn and under freeloop run](images/bench-overhead.svg)",
        table(
            [
                *("", "failed", "CPU, µs at full speed", "CPU, µs at half", "KB waiting", "requests/s"),
                "memory at most, MB",
            ],
            [
                [_mark(name), f"{peer['failed']:,}"]
                + [spread(peer[key], digits) for key, _, digits, _, _ in _COLUMNS]
                + [spread(peer["speed"], 0), spread(peer["peak_mb"], 0)]
                for name, peer in peers.items()
            ],
        ),
        _list_parts(result),
        _check_generator(result),
        _verdicts(result),
    ]
    return "\n\n".join(filter(None, parts))


def _mark(name: str) -> str:
    """Return a peer's name with its command as code."""
    command, comma, rest = name.partition(",")
    return name if name == RAW.name else f"`{command}`{comma}{rest}"


def _list_parts(result: dict[str, Any]) -> str:
    if not result.get("parts"):
        return ""
    return "What a part costs, as what is saved where only it is switched off:\n\n" + table(
        ["", "CPU, µs at full speed", "CPU, µs at half"],
        [
            [part, *(spread(more[key], 1) for key in ("full", "paced"))]
            for part, more in result["parts"].items()
        ],
    )


def _check_generator(result: dict[str, Any]) -> str:
    if not (wrk := result.get("wrk")):  # results of before have none
        return ""
    if not wrk["peers"]:
        return "wrk, which checks our generator at full speed, was not installed."
    return document_by_both(wrk["version"], {_mark(name): each for name, each in wrk["peers"].items()})


def _verdicts(result: dict[str, Any]) -> str:
    lines = []
    differences = result["differences"]
    for key, unit, digits, words, target in _COLUMNS:
        if OURS.name not in differences or not (more := differences[OURS.name][key]):
            continue
        lines.append(
            f"- What `freeloop run` adds to the {words}: {spread(more, digits)} {unit}; the target, at most "
            f"{target} {unit}, is {judge(more, target)}."
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
    if viewers := result.get("viewers"):
        lines.append(document_viewers(viewers))
    lines += warn_of_others(max(peer["held_up"]["high"] for peer in result["peers"].values()))
    return "\n".join(lines)


_DRAWN = (RAW.name, PLAIN.name, SETTLED.name, KIT.name, OURS.name)


def draw(result: dict[str, Any], path: Path) -> None:
    from bench.figures import draw_bars, save, take_panels  # noqa: PLC0415 - matplotlib is slow

    figure, panels = take_panels(3, widths=(1, 1, 1))
    titles = ("CPU, µs per request, full speed", "CPU, µs per request, half speed", "KB per waiting request")
    for panel, (key, *_), title in zip(panels, _COLUMNS, titles, strict=True):
        draw_bars(panel, {name: result["peers"][name][key] for name in _DRAWN if name in result["peers"]})
        panel.set_title(title)
    save(figure, path)
