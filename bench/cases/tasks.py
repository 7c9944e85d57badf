"""Tasks that survive the process: ours, its engine alone, and what others have."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg

from bench.cases import Run
from bench.machine import SERVER_CORE, on_core
from bench.postgresql import Shop, find_versions, open_shop
from bench.redis import find_version, open_redis
from bench.report import (
    compare,
    compare_most,
    judge,
    judge_least,
    name_versions,
    percentile,
    say_rounds,
    spread,
    summarize,
    table,
)
from bench.servers import OUR_LISTENING, ROOT, Peer, run_freeloop, run_uvicorn, start
from bench.servers import OURS as SERVICE
from bench.slices import list_numbers, load, summarize_rounds, tabulate, warn_of_others

TITLE = "Durable tasks"
CALLERS, BATCH = 64, 500
OURS = Peer("Freeloop", ("-m", "bench.peers.tasks_freeloop"))
BARE = Peer("pgqueuer", ("-m", "bench.peers.tasks_pgqueuer"))
PROCRASTINATE = Peer("procrastinate", ("-m", "bench.peers.tasks_procrastinate"))
STREAQ = Peer("streaq, on Redis", ("-m", "bench.peers.tasks_streaq"))
ARQ = Peer("arq, on Redis", ("-m", "bench.peers.tasks_arq"))
ON_REDIS = {STREAQ, ARQ}
ENGINES = (OURS, BARE, PROCRASTINATE, STREAQ, ARQ)

_START = run_freeloop("bench.peers.task_start:app", "--no-access-log")
ELSEWHERE = Peer("Freeloop, worker elsewhere", _START, OUR_LISTENING)
INLINE = Peer("Freeloop, worker inline", _START, OUR_LISTENING)
ALONE = Peer("Freeloop, `POST /tasks/wait`", SERVICE.command, SERVICE.listening)
BARE_START = Peer(
    "FastAPI, asyncpg and pgqueuer", run_uvicorn("bench.peers.task_start_pgqueuer:app", "--no-access-log")
)
STARTERS = (ELSEWHERE, INLINE, ALONE, BARE_START)
_ONCE = (STREAQ, ARQ, BARE_START)  # no target names them
_ORDERS = "create table orders (id bigint generated always as identity primary key, what text not null)"
# Of the issue: of the engine's executions and of procrastinate's at least, ms at most, 202 a second at least.
DRAINED: Mapping[str, float] = {BARE.name: 0.5, PROCRASTINATE.name: 10.0}
PICKED_UP: Mapping[str, float] = {"p50": 6.0, "p99": 20.0}
ANSWERED = 2_000.0
_RATES: Mapping[str, str] = {
    "drained": "Executions a second",
    "many": f"Starts a second, {BATCH} at a time",
    "single": "Starts a second, one by one",
}


def measure(run: Run) -> dict[str, Any]:
    count, singles, slices, seconds = (500, 50, 2, 0.2) if run.short else (10_000, 400, 4, 1.5)
    engines = run.choose(ENGINES)
    starters = run.choose(STARTERS)
    rounds: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in engines}
    answers: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in starters}
    for number in range(run.rounds):
        for peer in run.line_up(engines, number, _ONCE):
            run.say(f"round {number + 1} of {run.rounds}: {peer.name}")
            # Of the slow ones fewer: they have a rate, and a time, too.
            fewer = count // 5 if peer is PROCRASTINATE else count
            alone = singles // 8 if peer is ARQ else singles
            if (measured := _measure_engine(peer, max(BATCH, fewer), alone)) is not None:
                rounds[peer.name].append(measured)
        for peer in run.line_up(starters, number, _ONCE):
            run.say(f"round {number + 1} of {run.rounds}: 202, {peer.name}")
            answers[peer.name].append(_measure_answers(peer, slices, seconds))
    rounds = {name: measured for name, measured in rounds.items() if measured}
    return {
        "count": count,
        "singles": singles,
        "batch": BATCH,
        "callers": CALLERS,
        "rounds": run.rounds,
        "versions": {
            **{name: version(name) for name in ("pgqueuer", "procrastinate", "streaq", "arq")},
            **find_versions(),
            "Redis": find_version(),
        },
        "peers": {name: _summarize(measured) for name, measured in rounds.items()},
        "ratios": {
            name: summarize(
                [
                    mine["drained"] / its["drained"]
                    for mine, its in zip(rounds[OURS.name], rounds[name], strict=True)
                ]
            )
            for name in DRAINED
            if OURS.name in rounds and name in rounds
        },
        "answers": {name: summarize_rounds(measured) for name, measured in answers.items()},
    }


def _measure_engine(peer: Peer, count: int, singles: int) -> dict[str, Any] | None:
    """Run an engine in a process of its own on the servers' core; None where its store is not there."""
    with tempfile.TemporaryDirectory(prefix="bench-tasks-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # as root, PostgreSQL runs as another user, who has to reach it
        if peer in ON_REDIS:
            url = stack.enter_context(open_redis(folder))
            if url is None:
                return None
            environment = {"BENCH_REDIS": url}
        else:
            environment = stack.enter_context(open_shop(folder / "database", 1)).environment
        with on_core(SERVER_CORE):
            done = subprocess.run(
                [sys.executable, *peer.command, str(count), str(singles), str(BATCH)],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                timeout=300,
                check=True,
            )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _measure_answers(peer: Peer, slices: int, seconds: float) -> dict[str, Any]:
    """Measure on a database of its own: a worker would take the tasks of the others too."""
    with tempfile.TemporaryDirectory(prefix="bench-tasks-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        settings = {"FREELOOP_WORKER": "inline" if peer is INLINE else "none", "FREELOOP_ACCESS_LOG": "false"}
        path = "/tasks/wait" if peer is ALONE else "/orders"
        with open_shop(folder / "database", 1) as shop:
            asyncio.run(_prepare(shop))
            with start(peer, {**shop.environment, **settings}) as server:
                ask = partial(load, server, path, CALLERS, method="POST")
                ask(3 * CALLERS)
                count = max(CALLERS, round(ask(3 * CALLERS).rate * seconds))
                return list_numbers([ask(count) for _ in range(slices)])


async def _prepare(shop: Shop) -> None:
    from pgqueuer.db import AsyncpgDriver  # noqa: PLC0415 - slow to load
    from pgqueuer.queries import Queries  # noqa: PLC0415 - as above

    connection = await asyncpg.connect(**shop.address.arguments(), timeout=30)
    try:
        await connection.execute(_ORDERS)
        await Queries(AsyncpgDriver(connection)).install()
    finally:
        await connection.close(timeout=30)


def _summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    delays = [sorted(1000 * delay for delay in each["delays"]) for each in rounds]
    return {
        "rounds": len(rounds),
        **{key: summarize([each[key] for each in rounds]) for key in ("many", "single", "drained", "cpu_us")},
        "peak_mb": summarize([each["peak_mb"] for each in rounds]),
        "p50": summarize([percentile(each, 50) for each in delays]),
        "p99": summarize([percentile(each, 99) for each in delays]),
    }


def document(result: dict[str, Any]) -> str:
    rounds, measured = result["rounds"], {**result["peers"], **result["answers"]}
    introduction = (
        f"{result['count']:,} tasks that do nothing (of procrastinate a fifth), started {result['batch']} at "
        f"a time, then executed by one worker; {result['singles']} started one by one from 32 places, and as "
        f"many one after the other while the worker rests (of arq an eighth). {say_rounds(rounds, measured)}"
    )
    header = [
        "",
        "starts/s, many",
        "starts/s, one by one",
        "executions/s",
        "CPU, µs an execution",
        "begins after, p50, ms",
        "p99, ms",
        "memory at most, MB",
    ]
    rows = [
        [
            name,
            *(spread(peer[key], 0) for key in ("many", "single", "drained", "cpu_us")),
            *(spread(peer[key], 1) for key in ("p50", "p99")),
            spread(peer.get("peak_mb"), 0),
        ]
        for name, peer in result["peers"].items()
    ]
    return "\n\n".join(
        [
            introduction,
            "![Executions a second, and how soon they begin](images/bench-tasks.svg)",
            table(header, rows),
            f"202 by {result['callers']} callers: a row and a task in one transaction, or a task by itself:",
            tabulate(result["answers"]),
            _verdicts(result),
            *name_versions(result),
        ]
    )


def _verdicts(result: dict[str, Any]) -> str:
    lines = [
        f"- Executions a second: {spread(ratio, 2)} times those of {name}; the target, at least "
        f"{DRAINED[name]:g} times, is {judge_least(ratio, DRAINED[name])}."
        for name, ratio in result["ratios"].items()
    ]
    if ours := result["peers"].get(OURS.name):
        lines += [
            f"- From the start to the execution, {key}: {spread(ours[key], 1)} ms; the target, at most "
            f"{most:g} ms, is {judge(ours[key], most)}."
            for key, most in PICKED_UP.items()
        ]
        for key, what in _RATES.items():
            rates = {name: peer[key] for name, peer in result["peers"].items()}
            lines += [f"- {line}" for line in compare_most(rates, OURS.name, what)]
        for key, what in (("p50", "Median time to the execution"), ("p99", "99th percentile of it")):
            delays = {name: peer[key] for name, peer in result["peers"].items()}
            lines += [f"- {line}" for line in compare(delays, OURS.name, what, "ms", 1)]
        used = {name: peer["cpu_us"] for name, peer in result["peers"].items()}
        lines += [f"- {line}" for line in compare(used, OURS.name, "CPU time of an execution", "µs", 0)]
    for name in (ELSEWHERE.name, INLINE.name):
        answers = result["answers"]
        rates = {each: answers[each]["rate"] for each in (name, BARE_START.name) if each in answers}
        if name in rates:
            lines += [f"- {line}" for line in compare_most(rates, name, "202 a second")]
    for name in (ELSEWHERE.name, INLINE.name, ALONE.name):
        if name in result["answers"]:
            rate = result["answers"][name]["rate"]
            lines.append(
                f"- 202 a second, {name}: {spread(rate, 0)}; the target, at least {ANSWERED:,.0f}, is "
                f"{judge_least(rate, ANSWERED)}."
            )
    return "\n".join(
        lines
        + warn_of_others(max((each["held_up"]["high"] for each in result["answers"].values()), default=0.0))
    )


def draw(result: dict[str, Any], path: Path) -> None:
    from bench.figures import draw_bars, save, take_panels  # noqa: PLC0415 - matplotlib is slow

    figure, (drained, delay, answers) = take_panels(3, widths=(1, 1, 1))
    draw_bars(drained, {name: peer["drained"] for name, peer in result["peers"].items()})
    drained.set_title("executions a second")
    draw_bars(delay, {name: peer["p50"] for name, peer in result["peers"].items()})
    delay.set_title("from the start to the execution, ms (median)")
    draw_bars(
        answers, {name.replace(" and", ",\nand"): each["rate"] for name, each in result["answers"].items()}
    )
    answers.set_title("202 a second")
    save(figure, path)
