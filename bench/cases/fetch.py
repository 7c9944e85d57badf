"""An external API on the other core, called once for each request: by ours, and by what people use."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from operator import truediv
from pathlib import Path
from typing import Any

from bench.cases import Run
from bench.layers import measure_layers
from bench.report import compare, compare_most, judge_least, name_versions, say_rounds, spread
from bench.routing import measure_routing
from bench.servers import OUR_LISTENING, OURS, Peer, Running, run_uvicorn, start
from bench.slices import (
    list_numbers,
    load,
    load_in_turn,
    pair,
    summarize_rounds,
    tabulate,
    warn_of_others,
)
from bench.upstream import POSTS, find_version, open_upstream

TITLE = "Calls to an external API"
CALLERS = (64, 500)
LAYERS_US = 5.0  # of CPU, which all layers of an idle call may take beyond its transport
_PATH = "/fetch-data"

SHARED = Peer("Freeloop, identical calls shared", OURS.command, OUR_LISTENING)
CACHED = Peer("Freeloop, answers from memory", OURS.command, OUR_LISTENING)
TUTORIAL = Peer("httpx, a client per request", run_uvicorn("bench.peers.fetch_tutorial:app"))
HTTPX2 = Peer("httpx2, shared", run_uvicorn("bench.peers.fetch_httpx2:app"))
AIOHTTP = Peer("aiohttp, shared", run_uvicorn("bench.peers.fetch_aiohttp:app"))
TUNED = Peer("aiohttp, shared, bytes passed on", run_uvicorn("bench.peers.fetch_aiohttp:tuned"))
PYREQWEST = Peer("pyreqwest, shared", run_uvicorn("bench.peers.fetch_pyreqwest:app"))
PEERS = (OURS, SHARED, CACHED, TUTORIAL, HTTPX2, AIOHTTP, TUNED, PYREQWEST)
_ONCE = (HTTPX2, PYREQWEST)  # no target names them
# Times the answers a second of that peer, at least.
TARGETS: Mapping[Peer, Mapping[Peer, float]] = {
    OURS: {TUTORIAL: 150.0, AIOHTTP: 0.9, TUNED: 0.9},
    SHARED: {TUTORIAL: 150.0},
    CACHED: {TUTORIAL: 150.0},
}


def measure(run: Run) -> dict[str, Any]:
    slices, seconds = (1, 0.1) if run.short else (3, 0.8)
    peers = run.choose(PEERS)
    rounds: dict[str, dict[str, list[dict[str, Any]]]] = {
        peer.name: {str(callers): [] for callers in CALLERS} for peer in peers
    }
    with open_upstream(run.data_dir) as url:
        for number in range(run.rounds):
            turn = run.line_up(peers, number, _ONCE)
            with ExitStack() as stack:
                servers = {
                    peer.name: stack.enter_context(start(peer, _environment(peer, url, run))) for peer in turn
                }
                for server in servers.values():
                    _check(server)
                for callers in CALLERS:
                    # At its rate so many would wait longer for each other than anybody does.
                    asked = {
                        name: server
                        for name, server in servers.items()
                        if name != TUTORIAL.name or callers == CALLERS[0]
                    }
                    run.say(f"round {number + 1} of {run.rounds}: {callers} callers, {', '.join(asked)}")
                    measured = _measure_load(asked, callers, slices, seconds)
                    for name, numbers in measured.items():
                        rounds[name][str(callers)].append(numbers)
    return {
        "bytes": len(json.dumps(POSTS)),
        "slices": slices,
        "seconds": seconds,
        "layers": measure_layers(),
        "routing": measure_routing(3 if run.short else 60),
        "versions": {
            **{name: version(name) for name in ("httpx", "httpx2", "aiohttp", "pyreqwest")},
            "nginx": find_version(),
        },
        "peers": {
            name: {callers: summarize_rounds(measured) for callers, measured in loads.items() if measured}
            for name, loads in rounds.items()
        },
        "ratios": {
            mine.name: {
                its.name: {
                    callers: pair(rounds[mine.name][callers], measured, "rate", truediv)
                    for callers, measured in rounds[its.name].items()
                    if measured
                }
                for its in targets
                if its in peers
            }
            for mine, targets in TARGETS.items()
            if mine in peers
        },
    }


def _environment(peer: Peer, url: str, run: Run) -> dict[str, str]:
    source = {"url": url, "coalesce": peer is SHARED or peer is CACHED, "cache": peer is CACHED}
    return {
        "BENCH_UPSTREAM": url,
        "FREELOOP_DATA_DIR": str(run.data_dir / "ours"),
        "FREELOOP_SOURCES": json.dumps({"posts": source}),
    }


def _check(server: Running) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{_PATH}", timeout=10) as answer:
        if json.load(answer)["data"] != POSTS:
            raise RuntimeError(f"{_PATH}: expected the posts of the upstream, got something else")


def _measure_load(
    servers: Mapping[str, Running], callers: int, slices: int, seconds: float
) -> dict[str, dict[str, Any]]:
    counts = {}
    for name, server in servers.items():
        load(server, _PATH, 16, 32)  # what is loaded late is loaded
        # From a load that the slowest one bears: it may have seconds for each of so many callers.
        rate = load(server, _PATH, 16, 32 if name == TUTORIAL.name else round(2_000 * seconds)).rate
        counts[name] = max(callers, round(rate * seconds))
    done = load_in_turn(list(servers), slices, lambda name: load(servers[name], _PATH, callers, counts[name]))
    return {name: list_numbers(each) for name, each in done.items()}


def document(result: dict[str, Any]) -> str:
    peers = result["peers"]
    loads = {name: next(iter(peer.values())) for name, peer in peers.items()}
    rounds = next(iter(loads.values()))["rounds"]
    introduction = (
        f"`GET {_PATH}`, an upstream that answers {result['bytes']:,} bytes of JSON; {result['slices']} "
        f"slices of about {result['seconds']:g} s to each in turn. {say_rounds(rounds, loads)}"
    )
    parts = [introduction, "![Answers a second of the peers](images/bench-fetch.svg)"]
    for callers in map(str, CALLERS):
        asked = {name: peer[callers] for name, peer in peers.items() if callers in peer}
        parts += [f"{callers} callers on keep-alive connections:", tabulate(asked)]
    if TUTORIAL.name in peers:
        each = CALLERS[1] / peers[TUTORIAL.name][str(CALLERS[0])]["rate"]["median"]
        parts.append(
            f"{TUTORIAL.name}, was not asked by {CALLERS[1]}: at its rate each would wait for {each:.0f} s."
        )
    return "\n\n".join([*parts, _verdicts(result), *name_versions(result)])


def _verdicts(result: dict[str, Any]) -> str:
    lines = [
        f"- {callers} callers, {mine.name} against {its.name}: {spread(ratio, 2)} times the answers a "
        f"second; the target, at least {target:g} times, is {judge_least(ratio, target)}."
        for mine, targets in TARGETS.items()
        for its, target in targets.items()
        for callers, ratio in result["ratios"].get(mine.name, {}).get(its.name, {}).items()
    ]
    if OURS.name in result["peers"]:
        lines += _compare(result["peers"])
    default, idle = result["layers"]["by default"], result["layers"]["all"]
    lines.append(
        f"- The layers of a call that none of them holds up take {default:.1f} µs of CPU beyond the "
        f"transport as they are by default, and {idle:.1f} µs with hedges, a rate and an attempt's time "
        f"added; the target, at most {LAYERS_US:g} µs, is {'kept' if idle <= LAYERS_US else '**missed**'}."
    )
    if routing := result.get("routing"):  # results of before have none
        lines.append(
            f"- FastAPI takes in front of a route {routing['parameters']:.1f} µs of CPU for two "
            f"query parameters, {routing['dependencies']:.1f} µs for two dependencies, and "
            f"{routing['router']:.1f} µs for each router that is asked before its own."
        )
    worst = max(load["held_up"]["high"] for peer in result["peers"].values() for load in peer.values())
    return "\n".join([*lines, *warn_of_others(worst)])


def _compare(peers: Mapping[str, Any]) -> list[str]:
    """Compare with a call for each request: the peers share none."""
    lines = []
    for callers in map(str, CALLERS):
        asked = {
            name: peer[callers]
            for name, peer in peers.items()
            if callers in peer and name not in {SHARED.name, CACHED.name}
        }
        what = f"a call for each request, {callers} callers"
        rates, used = ({name: each[key] for name, each in asked.items()} for key in ("rate", "cpu"))
        lines += compare_most(rates, OURS.name, f"Answers a second, {what}")
        lines += compare(used, OURS.name, f"CPU time of {what}", "µs", 0)
    most = {name: each["peak_mb"] for name, each in asked.items()}
    lines += compare(most, OURS.name, f"Memory of the process at most, {callers} callers", "MB", 0)
    return [f"- {line}" for line in lines]


def draw(result: dict[str, Any], path: Path) -> None:
    from bench.figures import draw_bars, save, take_panels  # noqa: PLC0415 - matplotlib is slow

    figure, panels = take_panels(len(CALLERS), widths=[1] * len(CALLERS))
    for panel, callers in zip(panels, map(str, CALLERS), strict=True):
        draw_bars(
            panel,
            {
                name.replace(", ", ",\n").replace("\nshared, ", "\n"): peer.get(callers, {}).get("rate")
                for name, peer in result["peers"].items()
            },
        )
        panel.set_title(f"answers a second, {callers} callers")
    save(figure, path)
