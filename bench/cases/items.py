"""Twenty items a page for 64 callers, each with a page of its own, and all with the same one."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from operator import truediv
from pathlib import Path
from typing import Any

from bench.cases import Run
from bench.postgresql import Shop, find_pgbench, find_versions, open_shop
from bench.report import compare, compare_most, judge_least, name_versions, say_rounds, spread, summarize
from bench.servers import OURS, Peer, Running, run_uvicorn, start
from bench.slices import (
    list_numbers,
    load,
    load_in_turn,
    pair,
    summarize_rounds,
    tabulate,
    warn_of_others,
)

TITLE = "Pages of items"
CALLERS, ROWS, CONNECTIONS = 64, 20, 10
_ITEMS = ROWS * (CALLERS + 2)

TUTORIAL = Peer("`databases`", run_uvicorn("bench.peers.items_databases:app"))
SQLALCHEMY = Peer("SQLAlchemy", run_uvicorn("bench.peers.items_sqlalchemy:app"))
ASYNCPG = Peer("asyncpg", run_uvicorn("bench.peers.items_asyncpg:app"))
TUNED = Peer("asyncpg, tuned", run_uvicorn("bench.peers.items_tuned:app"))
LITESTAR = Peer("Litestar", run_uvicorn("bench.peers.items_litestar:app"))
_ONCE = (SQLALCHEMY, ASYNCPG, TUNED, LITESTAR)  # no target names them

_LOADS = {
    "distinct": [f"/items?limit={ROWS}&after={ROWS * number}" for number in range(1, CALLERS + 1)],
    "identical": [f"/items?limit={ROWS}&after={ROWS}"],
}
TARGETS = {"distinct": 1.5, "identical": 6.0}  # times the answers of the tutorial's way
# What ours asks, as pgbench writes it.
_QUERY = "select id, document_of(items)::text from items where id > :after order by id limit :most;"
_SCRIPT = f"\\set after random(1, {CALLERS}) * {ROWS}\n\\set most {ROWS} + 1\n{_QUERY}\n"


def measure(run: Run) -> dict[str, Any]:
    slices, seconds = (1, 0.1) if run.short else (4, 1.2)
    peers = run.choose((OURS, TUTORIAL, SQLALCHEMY, ASYNCPG, TUNED, LITESTAR))
    rounds: dict[str, dict[str, list[dict[str, Any]]]] = {
        peer.name: {kind: [] for kind in _LOADS} for peer in peers
    }
    limits = []
    with open_shop(run.data_dir, _ITEMS) as shop:
        for number in range(run.rounds):
            turn = run.line_up(peers, number, _ONCE)
            for kind, paths in _LOADS.items():
                run.say(
                    f"round {number + 1} of {run.rounds}: {kind}, {', '.join(peer.name for peer in turn)}"
                )
                for name, measured in _measure_load(turn, shop, paths, slices, seconds).items():
                    rounds[name][kind].append(measured)
            run.say(f"round {number + 1} of {run.rounds}: pgbench")
            limits.append(_measure_limit(shop, run.data_dir, 1 if run.short else 5))
    known = [limit for limit in limits if limit is not None]
    return {
        "callers": CALLERS,
        "rows": ROWS,
        "slices": slices,
        "seconds": seconds,
        "versions": {
            **{name: version(name) for name in ("asyncpg", "databases", "sqlalchemy", "litestar")},
            **find_versions(pgbench=True),
        },
        "peers": {
            name: {kind: summarize_rounds(measured) for kind, measured in kinds.items()}
            for name, kinds in rounds.items()
        },
        "ratios": {
            kind: _compare_rounds(rounds[OURS.name][kind], rounds[TUTORIAL.name][kind])
            for kind in _LOADS
            if OURS.name in rounds and TUTORIAL.name in rounds
        },
        "pgbench": summarize(known) if known else None,
    }


def _measure_load(
    peers: Sequence[Peer], shop: Shop, paths: Sequence[str], slices: int, seconds: float
) -> dict[str, dict[str, Any]]:
    with ExitStack() as stack:
        servers = {peer.name: stack.enter_context(start(peer, shop.environment)) for peer in peers}
        counts = {}
        for name, server in servers.items():
            _check(server, paths[0])
            load(server, paths, CALLERS, 5 * CALLERS)  # what is loaded late is loaded, connections included
            counts[name] = round(load(server, paths, CALLERS, 5 * CALLERS).rate * seconds)
        done = load_in_turn(
            list(servers), slices, lambda name: load(servers[name], paths, CALLERS, counts[name])
        )
    return {name: list_numbers(each) for name, each in done.items()}


def _check(server: Running, path: str) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
        page = json.load(answer)
    items = page["items"] if isinstance(page, dict) else page
    if len(items) != ROWS:
        raise RuntimeError(f"{path}: expected {ROWS} items, got {len(items)}")


def _measure_limit(shop: Shop, folder: Path, seconds: int) -> float | None:
    """Return how many such queries a second PostgreSQL answers; None where there is no pgbench."""
    pgbench = find_pgbench()
    if pgbench is None:
        return None
    script = folder / "page.sql"
    script.write_text(_SCRIPT, "utf-8")
    address = ("-h", str(shop.address.host), "-U", str(shop.address.user))
    done = subprocess.run(
        [
            *(pgbench, "-n", "-M", "prepared", "-c", str(CONNECTIONS), "-T", str(seconds), "-f", str(script)),
            *(*address, str(shop.address.database)),
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=True,
    )
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    if found is None:
        raise RuntimeError(f"pgbench: expected a line 'tps = …', got:\n{done.stdout}")
    return float(found[1])


def _compare_rounds(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many times as many answers, and as little CPU time."""
    return {
        "rate": pair(ours, theirs, "rate", truediv),
        "cpu": pair(theirs, ours, "cpu", truediv),
    }


def document(result: dict[str, Any]) -> str:
    peers = result["peers"]
    loads = {name: peer["distinct"] for name, peer in peers.items()}
    rounds = next(iter(loads.values()))["rounds"]
    introduction = (
        f"{result['callers']} callers on keep-alive connections, `GET /items` with {result['rows']} rows; "
        f"{result['slices']} slices of about {result['seconds']:g} s to each in turn. "
        f"{say_rounds(rounds, loads)}"
    )
    parts = [introduction, "![Answers a second of the peers](images/bench-items.svg)"]
    for kind, words in (("distinct", "Each caller another page"), ("identical", "All callers the same page")):
        parts += [
            f"{words}:",
            tabulate({name: peer[kind] for name, peer in peers.items()}),
        ]
    return "\n\n".join([*parts, _describe_limit(result), _verdicts(result), *name_versions(result)])


def _describe_limit(result: dict[str, Any]) -> str:
    if result["pgbench"] is None:
        return "There was no `pgbench` to measure PostgreSQL by itself."
    return (
        f"The limit: `pgbench` with {CONNECTIONS} connections has {spread(result['pgbench'], 0)} answers a "
        "second to the query of ours, on the core that it shares with PostgreSQL. Only reads that share one "
        "can be more."
    )


def _verdicts(result: dict[str, Any]) -> str:
    lines = []
    for kind, ratios in result["ratios"].items():
        rate, target = ratios["rate"], TARGETS[kind]
        lines.append(
            f"- {kind.capitalize()} reads: {spread(rate, 2)} times the answers a second of {TUTORIAL.name}; "
            f"the target, at least {target:g} times, is {judge_least(rate, target)}. In CPU time of the "
            f"server it is {spread(ratios['cpu'], 2)} times."
        )
    for kind in _LOADS:
        if OURS.name in result["peers"]:
            if refused := result["peers"][OURS.name][kind]["refused"]:
                lines.append(
                    f"- Freeloop's gate **refused** up to {refused:.1%} of the requests for {kind} reads."
                )
            rates, used, most = (
                {name: peer[kind][key] for name, peer in result["peers"].items()}
                for key in ("rate", "cpu", "peak_mb")
            )
            said = [
                *compare_most(rates, OURS.name, f"Answers a second, {kind} reads"),
                *compare(used, OURS.name, f"CPU time, {kind} reads", "µs", 0),
                *compare(most, OURS.name, f"Memory of the process at most, {kind} reads", "MB", 0),
            ]
            lines += [f"- {line}" for line in said]
    worst = max(peer[kind]["held_up"]["high"] for peer in result["peers"].values() for kind in _LOADS)
    lines += warn_of_others(worst)
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    from bench.figures import draw_bars, save, take_panels  # noqa: PLC0415 - matplotlib is slow

    figure, panels = take_panels(len(_LOADS), widths=[1] * len(_LOADS))
    for panel, kind in zip(panels, _LOADS, strict=True):
        draw_bars(
            panel, {name.replace("`", ""): peer[kind]["rate"] for name, peer in result["peers"].items()}
        )
        panel.set_title(f"answers a second, {kind} reads")
    save(figure, path)
