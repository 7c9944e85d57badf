"""More requests than a resource can bear: what is still answered in time, and how late."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import Run
from bench.load_open import Call, count_failures, plan_even, plan_poisson, send
from bench.peers.limited_resource import PLACES, SECONDS
from bench.postgresql import find_versions
from bench.report import name_versions, percentile, spread, summarize, table
from bench.servers import OUR_LISTENING, Peer, Running, run_freeloop, run_uvicorn, start

TITLE = "Up to ten times the capacity"
CAPACITY = PLACES / SECONDS  # requests a second
LOADS = (0.5, 1.0, 1.5, 3.0, 10.0)  # times the capacity
UNLOADED = 0.1  # times the capacity: nobody waits for anybody there
IN_TIME = 1.0  # s; an answer that comes later is of no use to anybody
PATIENCE = 2.0  # s; after that a caller is gone
PAUSE = 2.5  # s from the end of one step to the next: longer than anybody waits
PROBE_EVERY, PROBE_WITHIN = 0.5, 0.1  # s
GOODPUT_TARGET, LATENCY_TARGET = 0.9, 2.0  # of the issue: at least, and at most times the unloaded p99
LIMIT = 2 * PLACES
_HELD_UP = 0.05  # of a step: a server that is kept from its core so long is slower than it is by itself
_WORK, _PROBE = "/work", "/livez"
_APP, _POOL_APP = "bench.peers.limited_resource:app", "bench.peers.limited_pool:app"

OURS = Peer("freeloop run", run_freeloop(_APP, "--no-access-log"), OUR_LISTENING)
# The backlog that it has at the end is measured by nobody.
PLAIN = Peer("uvicorn", run_uvicorn(_APP, "--no-access-log", "--timeout-graceful-shutdown", "1"))
LIMITED = Peer(
    f"uvicorn --limit-concurrency {LIMIT}",
    run_uvicorn(_APP, "--no-access-log", "--limit-concurrency", str(LIMIT)),
)
COLD = Peer("freeloop run, cold", OURS.command, OUR_LISTENING)
POOL = Peer("freeloop run, PostgreSQL pool", run_freeloop(_POOL_APP, "--no-access-log"), OUR_LISTENING)


@dataclass(frozen=True, slots=True)
class Steps:
    """Loads in times the capacity, and how many seconds each lasts."""

    loads: Sequence[float]
    seconds: float


def measure(run: Run) -> dict[str, Any]:
    length = 2.0 if run.short else 20.0
    loads = (UNLOADED, *(LOADS[-1:] if run.short else LOADS))
    plans: Mapping[str, Steps] = {
        OURS.name: Steps(loads, length),
        PLAIN.name: Steps(loads, length),
        LIMITED.name: Steps(loads, length),
        COLD.name: Steps((LOADS[-1],), length / 4),
        POOL.name: Steps((UNLOADED, LOADS[-1]), length / 4),
    }
    turn = Counter[str]()

    def measure_peer(peer: Peer) -> dict[str, Any]:
        turn[peer.name] += 1
        with start(peer, {"FREELOOP_DATA_DIR": str(run.data_dir)}) as server:
            if peer is not COLD:
                send(server.port, plan_even(_PROBE, 0.02, 0.4), patience=PATIENCE)
            # Every peer meets the same arrivals, and every round others.
            return {"steps": _climb(server, plans[peer.name], seed=1_000 * turn[peer.name], run=run)}

    # Those that nobody has set a target for once: a round of ours alone takes more than two minutes.
    rounds = run.alternate((OURS, PLAIN, LIMITED, COLD, POOL), measure_peer, once=(PLAIN, LIMITED))
    return {
        "capacity": CAPACITY,
        "seconds": length,
        "versions": find_versions(),
        "peers": {name: _summarize(measured) for name, measured in rounds.items()},
    }


def _climb(server: Running, plan: Steps, *, seed: int, run: Run) -> list[dict[str, Any]]:
    """Measure one load after the other in the same process."""
    steps = []
    for number, load in enumerate(plan.loads):
        arrivals = plan_poisson(_WORK, load * CAPACITY, plan.seconds, seed + number)
        probes = plan_even(_PROBE, PROBE_EVERY, plan.seconds)
        began = time.monotonic()
        used, held_up = server.cpu_clock(), server.held_up()
        sent = send(server.port, [*arrivals, *probes], patience=PATIENCE)
        cpu = server.cpu_clock() - used
        step = {
            "load": load,
            **_judge([call for call in sent.calls if call.path == _WORK], plan.seconds),
            **_judge_probes([call for call in sent.calls if call.path == _PROBE]),
            "late_p99": sent.late_p99,
            "busy": cpu / (time.monotonic() - began),
            "cpu_us": cpu / len(arrivals) * 1e6,
            "peak_mb": server.peak_memory() / 1e6,
            "held_up": (server.held_up() - held_up) / (time.monotonic() - began),
        }
        steps.append(step)
        run.say(
            f"  {load:g} times the capacity: {step['share']:.0%} in time, p99 {_milliseconds(step['p99'])}"
        )
        if number + 1 < len(plan.loads):
            time.sleep(max(0.0, began + plan.seconds + PAUSE - time.monotonic()))
    return steps


def _judge(calls: Sequence[Call], seconds: float) -> dict[str, Any]:
    admitted = sorted(call.latency for call in calls if call.status == 200)
    settled = sorted(call.latency for call in calls if call.status == 200 and call.due >= 1.0)
    in_time = sum(call.status == 200 and call.latency <= IN_TIME for call in calls)
    offered = len(calls) / seconds
    failures = count_failures(calls)
    return {
        "offered": offered,
        "goodput": in_time / seconds,
        "share": in_time / seconds / min(offered, CAPACITY),
        "shed": sum(call.status == 503 for call in calls) / len(calls),
        "failed": sum(failures.values()) / len(calls),
        "failures": failures,
        "p50": percentile(admitted, 50) if admitted else None,
        "p99": percentile(admitted, 99) if admitted else None,
        "settled_p99": percentile(settled, 99) if settled else None,
    }


def _judge_probes(calls: Sequence[Call]) -> dict[str, Any]:
    good = [call.latency for call in calls if call.status == 200 and call.latency <= PROBE_WITHIN]
    return {
        "probes": len(calls),
        "probes_missed": len(calls) - len(good),
        "probe_slowest": max((call.latency for call in calls), default=0.0),
    }


_NUMBERS = (
    "offered",
    "goodput",
    "share",
    "shed",
    "failed",
    "p50",
    "p99",
    "settled_p99",
    "late_p99",
    "busy",
    "cpu_us",
    "peak_mb",
    "held_up",
)


def _summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    steps = []
    for same in zip(*(each["steps"] for each in rounds), strict=True):
        step: dict[str, Any] = {"load": same[0]["load"]}
        for key in _NUMBERS:
            values = [one[key] for one in same if one[key] is not None]
            step[key] = summarize(values) if values else None
        step["probes"] = sum(one["probes"] for one in same)
        step["probes_missed"] = sum(one["probes_missed"] for one in same)
        step["probe_slowest"] = max(one["probe_slowest"] for one in same)
        step["failures"] = dict(sum((Counter(one["failures"]) for one in same), Counter[str]()))
        for key in ("p99", "settled_p99"):
            ratios = [
                one[key] / each["steps"][0]["p99"]
                for one, each in zip(same, rounds, strict=True)
                if one[key] is not None and each["steps"][0]["load"] == UNLOADED and each["steps"][0]["p99"]
            ]
            step[f"{key}_ratio"] = summarize(ratios) if ratios else None
        steps.append(step)
    return {"rounds": len(rounds), "steps": steps}


def document(result: dict[str, Any]) -> str:
    peers = result["peers"]
    rounds = next(iter(peers.values()))["rounds"]
    plural = "round" if rounds == 1 else "rounds"
    parts = [
        (
            f"A capacity of {result['capacity']:g} requests a second; {result['seconds']:g} s for each load. "
            f"Median of {rounds} {plural}, in brackets the lowest and the highest; uvicorn has one."
        ),
        "![Answers in time and the 99th percentile over the offered load](images/bench-overload.svg)",
    ]
    for name, peer in peers.items():
        if len(peer["steps"]) > 2:
            parts += [f"`{name}`:", _tabulate(peer["steps"])]
    if OURS.name in peers:
        parts.append(_verdicts(peers[OURS.name]["steps"]))
    if LIMITED.name in peers and OURS.name in peers:
        parts.append(_compare(peers[OURS.name]["steps"], peers[LIMITED.name]["steps"]))
    if COLD.name in peers:
        parts += [
            (
                "A cold start: the first requests that a new process of `freeloop run` gets come at "
                f"{LOADS[-1]:g} times the capacity, for {result['seconds'] / 4:g} s. It knows no latency "
                "without a queue then; no target is set."
            ),
            _tabulate(peers[COLD.name]["steps"]),
        ]
    if POOL.name in peers:
        parts += [
            (
                f"`freeloop run` before a real resource: `SELECT pg_sleep({SECONDS:g})` on a pool of "
                f"{PLACES} connections to the embedded PostgreSQL, {result['seconds'] / 4:g} s for each load."
            ),
            _tabulate(peers[POOL.name]["steps"]),
        ]
    late = max(step["late_p99"]["high"] for peer in peers.values() for step in peer["steps"])
    parts.append(
        f"The load generator sent 99 % of the requests of every step within {_milliseconds(late)} of when "
        "they were due."
    )
    held_up = max(step["held_up"]["high"] for peer in peers.values() for step in peer["steps"])
    if held_up > _HELD_UP:
        parts.append(
            f"**Something else ran on the servers' core**: in the worst step a server wanted to run and "
            f"could not for {held_up:.0%} of the time. These numbers say little about the servers."
        )
    return "\n\n".join([*parts, *name_versions(result)])


def _tabulate(steps: Sequence[dict[str, Any]]) -> str:
    return table(
        [
            "load",
            "offered/s",
            "in time/s",
            "of what is possible",
            "shed",
            "failed",
            "p50, ms",
            "p99, ms",
            "p99 to unloaded",
            "p99 after 1 s, ms",
            "/livez missed",
            "CPU, µs a request",
            "memory at most, MB",
        ],
        [
            [
                f"{step['load']:g}×",
                f"{step['offered']['median']:,.0f}",
                f"{step['goodput']['median']:,.0f}",
                _percent(step["share"]),
                f"{step['shed']['median']:.0%}",
                f"{step['failed']['median']:.0%}",
                spread(step["p50"], 0, factor=1000),
                spread(step["p99"], 0, factor=1000),
                spread(step["p99_ratio"], 2),
                spread(step["settled_p99"], 0, factor=1000),
                f"{step['probes_missed']} of {step['probes']}",
                spread(step.get("cpu_us"), 0),  # results of before have neither
                spread(step.get("peak_mb"), 0),
            ]
            for step in steps
        ],
    )


def _verdicts(steps: Sequence[dict[str, Any]]) -> str:
    loaded = [step for step in steps if step["load"] != UNLOADED]
    goodput = [step for step in loaded if step["share"]["low"] < GOODPUT_TARGET]
    late = [step for step in loaded if not step["p99_ratio"] or step["p99_ratio"]["high"] > LATENCY_TARGET]
    probes = sum(step["probes_missed"] for step in steps)
    worst = min(step["share"]["low"] for step in loaded)
    slowest = max((step["p99_ratio"]["high"] for step in loaded if step["p99_ratio"]), default=math.inf)
    settled = max(
        (step["settled_p99_ratio"]["high"] for step in loaded if step["settled_p99_ratio"]), default=math.inf
    )
    return "\n".join(
        [
            (
                f"- Goodput of `freeloop run`: the target, at least {GOODPUT_TARGET:.0%} of what is possible "
                f"at every load in every round, is {_kept(goodput)}; the worst is {worst:.0%}."
            ),
            (
                f"- 99th percentile of what `freeloop run` admits: the target, at most {LATENCY_TARGET:g} "
                f"times the unloaded one at every load in every round, is {_kept(late)}; the worst is "
                f"{slowest:.2f} times, and {settled:.2f} times without the first second of each step, in "
                "which the load jumps."
            ),
            (
                f"- `/livez` of `freeloop run` answered within {PROBE_WITHIN:g} s "
                + ("every time." if not probes else f"except for {probes} times.")
            ),
        ]
    )


def _kept(missed: Sequence[dict[str, Any]]) -> str:
    if not missed:
        return "kept"
    return "**missed** at " + ", ".join(f"{step['load']:g}×" for step in missed)


def _compare(ours: Sequence[dict[str, Any]], limited: Sequence[dict[str, Any]]) -> str:
    """Say where the limit that somebody set is better than ours."""
    ahead = []
    for mine, its in zip(ours, limited, strict=True):
        if mine["load"] == UNLOADED:
            continue
        if its["share"]["low"] > mine["share"]["high"]:
            ahead.append(f"goodput at {mine['load']:g}×")
        if its["p99"] and mine["p99"] and its["p99"]["high"] < mine["p99"]["low"]:
            ahead.append(f"p99 at {mine['load']:g}×")
    missed = sum(step["probes_missed"] for step in limited)
    probes = sum(step["probes"] for step in limited)
    return (
        f"- `{LIMITED.name}`, which somebody set who knows the capacity, "
        + (f"**is ahead** in: {', '.join(ahead)}" if ahead else "is ahead nowhere")
        + f". It refused or delayed {missed} of {probes} requests for `/livez`."
    )


def _percent(summary: dict[str, float]) -> str:
    return spread(summary, 0, factor=100) + " %"


def _milliseconds(seconds: float | None, digits: int = 1) -> str:
    return "none" if seconds is None else f"{1000 * seconds:,.{digits}f} ms"


def summarize_for_readme(result: dict[str, Any], language: str) -> str:
    mine, plain = (result["peers"][peer.name]["steps"][-1] for peer in (OURS, PLAIN))
    ours, its, shed = (f"{share['median']:.0%}" for share in (mine["share"], plain["share"], mine["shed"]))
    p99 = _milliseconds(mine["p99"] and mine["p99"]["median"], 0)
    times = f"{mine['p99_ratio']['median']:.2f}" if mine["p99_ratio"] else ""
    if language == "zh-TW":
        usual = f"，為無負載時的 {times} 倍" if times else ""
        return (
            f"當請求量是資源所能服務的 {mine['load']:g} 倍時，"
            f"單純的 uvicorn 在 {IN_TIME:g} 秒內回應可能數量的 {its}，\n"
            f"`freeloop run` 為 {ours}（p99 {p99}{usual}）；所有請求的 {shed} 立刻回 503。"
        )
    usual = f", {times} times that without load" if times else ""
    return (
        f"At {mine['load']:g} times the requests that a resource can serve, plain uvicorn answers {its} of "
        f"what is possible within {IN_TIME:g} s,\nand `freeloop run` {ours} (p99 {p99}{usual}); {shed} of "
        "all requests are refused with 503 at once."
    )


def draw(result: dict[str, Any], path: Path) -> None:
    from bench.figures import draw_lines, save, take_panels  # noqa: PLC0415 - matplotlib is slow

    peers = {name: peer for name, peer in result["peers"].items() if len(peer["steps"]) > 2}
    figure, (goodput, latency) = take_panels(2, widths=(1, 1))
    for panel, key, factor in ((goodput, "goodput", 1.0), (latency, "p99", 1000.0)):
        draw_lines(
            panel,
            {
                name: [(step["load"], step[key]) for step in peer["steps"] if step[key]]
                for name, peer in peers.items()
            },
            factor=factor,
        )
        panel.set_xlabel("offered, times the capacity")
    goodput.axhline(result["capacity"], color="#999999", linewidth=0.8, linestyle=":")
    goodput.set_ylim(bottom=0)
    goodput.set_title(f"answers within {IN_TIME:g} s, a second (dotted: the capacity)")
    goodput.legend(frameon=False, fontsize=8, loc="best")
    latency.set_yscale("log")
    latency.set_title("99th percentile of admitted requests, ms")
    save(figure, path)
