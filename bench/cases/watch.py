"""What finds what blocks the loop: what it costs, and what it finds."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from operator import sub, truediv
from pathlib import Path
from typing import Any

from bench.blocks import APPS, INNOCENT, Verdict, list_ways, question
from bench.cases import Run
from bench.report import compare, judge, name_versions, say_rounds, spread, summarize, table
from bench.servers import OUR_LISTENING, ROOT, Peer, Running, run_freeloop, run_uvicorn, start
from bench.slices import list_numbers, load, load_in_turn, pair, warn_of_others

TITLE = "Finding what blocks the loop"
CALLERS = 32
TARGET_US, TARGET_IDLE_MS = 2, 5  # of CPU time, a request and an idle second
MOST = 1.3  # times the CPU time of a request without the watchdog that the regression check allows
_CALM = 2.0  # seconds after a load, in which servers and detectors come to rest
_CHECKED_WAYS = ("sleep", "cpu-loop", "json")
_JSON_APP, _BLOCKING_APP, _PATH = "bench.peers.json_route:app", "blocking:app", "/item"
_WATCHED = run_uvicorn("bench.peers.watched:app", "--no-access-log")

PLAIN = Peer("uvicorn", _WATCHED)
UNWATCHED = Peer("freeloop run, without watchdog", (), OUR_LISTENING)
OURS = Peer("Freeloop", (), OUR_LISTENING)
# The names of their packages, what BENCH_DETECTOR calls them, and what they write when they found something.
_DETECTORS = {
    "aiocop": ("aiocop", r"aiocop: slow task"),
    "loopsentry": ("loopsentry", r'"type":"block_started"'),
    "asynclens": ("asynclens", r"WARNING:asynclens|ERROR:asynclens|CRITICAL:asynclens"),
    "fastapi-loopguard": ("loopguard", r"Event loop blocked for \d{3,}"),
    "asyncio's debug mode": ("debug", r"Executing <"),
}
_PEERS = {name: Peer(name, _WATCHED) for name in _DETECTORS}
PEERS = (PLAIN, UNWATCHED, OURS, *_PEERS.values())
_ONCE = (PLAIN, *_PEERS.values())  # no target names them
_SPOKE = {
    OURS.name: r"the event loop (is|was) blocked",
    **{name: said for name, (_, said) in _DETECTORS.items()},
}


def measure(run: Run) -> dict[str, Any]:
    slices, count, idle = (2, 500, 1.0) if run.short else (12, 2_000, 5.0)
    peers = run.choose(PEERS)
    rounds: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
    for number in range(run.rounds):
        turn = run.line_up(peers, number, _ONCE)
        run.say(f"round {number + 1} of {run.rounds}: {', '.join(peer.name for peer in turn)} in turn")
        for name, numbers in _measure_cost(turn, slices, count, idle).items():
            rounds[name].append(numbers)
    ways = _CHECKED_WAYS[:1] if run.short else list_ways()
    verdicts = {}
    for peer in peers:
        if peer.name in _SPOKE and (peer is OURS or not run.short):
            run.say(f"{peer.name}: {len(ways)} ways to block")
            verdicts[peer.name] = _question(peer, ways, () if run.short else tuple(INNOCENT))
    return {
        "callers": CALLERS,
        "slices": slices,
        "count": count,
        "idle": idle,
        "ways": list(ways),
        "innocent": [] if run.short else list(INNOCENT),
        "versions": {name: version(name) for name in _DETECTORS if name != "asyncio's debug mode"},
        "peers": {
            name: {
                "rounds": len(measured),
                "held_up": max(max(each["held_up"]) for each in measured),
                "more_us": pair(measured, rounds[_find_base(name)], "cpu", sub)
                if _find_base(name) in rounds
                else None,
                "idle_ms": summarize(
                    [
                        one["idle_ms"] - other["idle_ms"]
                        for one, other in zip(measured, rounds[_find_base(name)], strict=True)
                    ]
                )
                if _find_base(name) in rounds
                else None,
                "peak_mb": summarize([each["peak_mb"] for each in measured]),
                "found": len(verdicts[name].found),
                "named": len(verdicts[name].named),
                "missed": sorted({*ways} - {*verdicts[name].found}),
                "unnamed": sorted({*verdicts[name].found} - {*verdicts[name].named}),
                "false": list(verdicts[name].false),
            }
            for name, measured in rounds.items()
            if name in verdicts
        },
    }


def check(_: Run) -> list[str]:
    """Return what is wrong with the cost of our watchdog against going without it, or with what it finds."""
    measured = _measure_cost([UNWATCHED, OURS], 7, 1_000, 0.0)
    ratio = pair([measured[OURS.name]], [measured[UNWATCHED.name]], "cpu", truediv)["median"]
    wrong = []
    if ratio > MOST:
        wrong.append(
            f"watch: expected a request to take at most {MOST:g} times the CPU time that it takes without "
            f"the watchdog, it took {ratio:.2f} times"
        )
    verdict = _question(OURS, _CHECKED_WAYS, ())
    if lost := {*_CHECKED_WAYS} - {*verdict.named}:
        wrong.append(f"watch: expected the blocking line of every way to be named, not so: {', '.join(lost)}")
    return wrong


def _find_base(name: str) -> str:
    return UNWATCHED.name if name == OURS.name else PLAIN.name


@contextmanager
def _start(peer: Peer, app: str) -> Iterator[tuple[Running, Path]]:
    """Start an app under a detector; the folder is where it may write files."""
    if peer in {OURS, UNWATCHED}:
        peer = Peer(peer.name, run_freeloop(app, "--no-access-log"), OUR_LISTENING)
    with tempfile.TemporaryDirectory(prefix="bench-reports-") as folder:
        environment = {
            "BENCH_APP": app,
            "BENCH_DETECTOR": _DETECTORS.get(peer.name, ("",))[0],
            "BENCH_REPORTS": folder,
            "FREELOOP_SHUTDOWN_TIMEOUT": "1",  # the app never ends the pool of processes that it has
            "FREELOOP_WATCH": "false" if peer.name == UNWATCHED.name else "true",
            "PYTHONPATH": f"{ROOT}:{APPS}",
        }
        with start(peer, environment) as server:
            yield server, Path(folder)


def _measure_cost(peers: Sequence[Peer], slices: int, count: int, idle: float) -> dict[str, dict[str, Any]]:
    with ExitStack() as stack:
        servers = {peer.name: stack.enter_context(_start(peer, _JSON_APP))[0] for peer in peers}
        for server in servers.values():
            load(server, _PATH, CALLERS, min(1_000, count))
        done = load_in_turn(list(servers), slices, lambda name: load(servers[name], _PATH, CALLERS, count))
        if idle:
            time.sleep(_CALM)
        before = {name: server.cpu_clock() for name, server in servers.items()}
        time.sleep(idle)
        used = {name: server.cpu_clock() - before[name] for name, server in servers.items()}
    return {
        name: {**list_numbers(each), "idle_ms": 1000 * used[name] / idle if idle else 0.0}
        for name, each in done.items()
    }


def _question(peer: Peer, ways: Sequence[str], innocent: Sequence[str]) -> Verdict:
    with _start(peer, _BLOCKING_APP) as (server, folder):

        def read() -> str:
            files = [server.log, *sorted(path for path in folder.rglob("*") if path.is_file())]
            return "\n".join(path.read_text("utf-8", errors="replace") for path in files)

        return question(server, read, re.compile(_SPOKE[peer.name]), ways, innocent)


def document(result: dict[str, Any]) -> str:
    peers: Mapping[str, Any] = result["peers"]
    rounds = next(iter(peers.values()))["rounds"]
    ways, innocent = len(result["ways"]), len(result["innocent"])
    introduction = (
        f"{result['callers']} callers, `GET {_PATH}`, {result['slices']} times {result['count']:,} requests "
        f"to each in turn; {result['idle']:g} s without any. {say_rounds(rounds, peers)} Found and named are "
        f"of {ways} ways to block, false alarms of {innocent} things that only look like one; both were "
        "tried once."
    )
    rows = [
        [
            name,
            spread(peer["more_us"], 1),
            spread(peer["idle_ms"], 2),
            f"{peer['found']} of {ways}",
            f"{peer['named']} of {ways}",
            f"{len(peer['false'])} of {innocent}",
            f"{peer['peak_mb']['median']:.0f}",
        ]
        for name, peer in peers.items()
    ]
    header = [
        "",
        "more CPU, µs a request",
        "CPU, ms an idle second",
        "blocks found",
        "line named",
        "false alarms",
        "memory at most, MB",
    ]
    return "\n\n".join(
        [
            introduction,
            "![What detectors cost and find](images/bench-watch.svg)",
            table(header, rows),
            _verdicts(peers),
            *name_versions(result),
        ]
    )


_MEASURES = (  # key, words, unit, digits, target
    ("more_us", "CPU time of a request", "µs", 1, TARGET_US),
    ("idle_ms", "CPU time of an idle second", "ms", 2, TARGET_IDLE_MS),
)


def _verdicts(peers: Mapping[str, Any]) -> str:
    lines = []
    if (ours := peers.get(OURS.name)) and ours["more_us"]:
        lines += [
            f"- Our watchdog, {what}: {spread(ours[key], 2)} {unit}; the target, at most {target} {unit}, is "
            f"{judge(ours[key], target)}."
            for key, what, unit, _, target in _MEASURES
        ]
        for key, what, unit, digits, _ in _MEASURES:
            used = {name: peer[key] for name, peer in peers.items() if peer[key]}
            lines += [f"- {line}" for line in compare(used, OURS.name, what, unit, digits)]
    for name, peer in peers.items():
        for key, words in (
            ("missed", "does not find"),
            ("unnamed", "names no line of"),
            ("false", "is wrong about"),
        ):
            if peer[key]:
                lines.append(f"- {name} {words}: {', '.join(peer[key])}.")
    lines += warn_of_others(max(peer["held_up"] for peer in peers.values()))
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    from bench.figures import draw_bars, save, take_panels  # noqa: PLC0415 - matplotlib is slow

    figure, (cost, idle, named) = take_panels(3, widths=(1, 1, 1))
    peers = {name.replace("'s ", "'s\n").replace("-", "-\n"): peer for name, peer in result["peers"].items()}
    draw_bars(cost, {name: peer["more_us"] for name, peer in peers.items()})
    cost.set_title("more CPU, µs a request")
    draw_bars(idle, {name: peer["idle_ms"] for name, peer in peers.items()})
    idle.set_title("CPU, ms an idle second")
    draw_bars(named, {name: summarize([peer["named"]]) for name, peer in peers.items()})
    named.set_title(f"lines named, of {len(result['ways'])} ways to block")
    for panel in (cost, idle, named):
        panel.tick_params("x", rotation=45, labelsize=7)
    save(figure, path)
