"""Ten thousand two-second waits at once against one process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.cases import Run
from bench.load import Burst
from bench.memory import measure_waiting, warm_up
from bench.report import compare, name_versions, percentile, say_once, spread, summarize, table
from bench.servers import AIOHTTP, BLACKSHEEP, LITESTAR, OURS, PLAIN, SYNC, Peer, Running, start

TITLE = "10,000 waiting requests at once"
_PATH = "/async-task"
_WARM_UP = 20
_SPARE_FILES = 200  # what generator and server open beside the connections


def measure(run: Run) -> dict[str, Any]:
    seconds = 0.2 if run.short else 2.0
    wanted = 500 if run.short else 10_000
    count = min(wanted, run.files - _SPARE_FILES)
    # Its 40 threads serve 40 waits at a time: 10,000 would take over eight minutes.
    sync_count = min(count, 80 if run.short else 200)
    path = f"{_PATH}?seconds={seconds}" if run.short else _PATH
    # A wait so long that even the slowest peer has taken all requests in before the first one ends.
    long = 0.6 if run.short else 8
    weighed: set[str] = set()  # memory scatters by less than a hundredth

    def start_peer(peer: Peer, wait: float) -> AbstractContextManager[Running]:
        return start(peer, {"BENCH_SECONDS": str(wait), "FREELOOP_DATA_DIR": str(run.data_dir)})

    def measure_peer(peer: Peer) -> dict[str, Any]:
        with start_peer(peer, seconds) as server:
            measured = _measure_latency(server, path, sync_count if peer is SYNC else count)
        if peer is SYNC or peer.name in weighed:
            return {**measured, "memory_kb": None, "idle_mb": None}
        with start_peer(peer, long) as server:
            memory = _measure_memory(server, long, count)
        if memory["memory_kb"] is not None:  # there was a calm moment
            weighed.add(peer.name)
        return {**measured, **memory}

    others = (AIOHTTP, LITESTAR, BLACKSHEEP, SYNC)
    rounds = run.alternate((OURS, PLAIN, *others), measure_peer, once=others)
    return {
        "seconds": seconds,
        "count": count,
        "wanted": wanted,
        "versions": {name: version(name) for name in ("litestar", "blacksheep")},
        "peers": {name: _summarize_rounds(measured) for name, measured in rounds.items()},
    }


def _measure_latency(server: Running, path: str, count: int) -> dict[str, Any]:
    warm_up(server, path, _WARM_UP)
    with Burst(server.port, path, count, timeout=60) as burst:
        burst.connect()
        server.wait_still()
        before = server.cpu_seconds()
        burst.send()
        burst.collect()
        server.wait_still()  # the access log is part of the work, also where it is written later
        cpu = server.cpu_seconds() - before
    peak = server.peak_memory()
    lines = server.log.read_text(errors="replace").splitlines()
    server.wait_still()  # it has seen the connections close

    with Burst(server.port, path, count, timeout=60) as connecting:
        connecting.connect_and_send()
        connecting.collect()
    return {
        "count": count,
        "failures": dict(burst.failures),
        **_describe_latencies(burst),
        "quantiles": [percentile(burst.latencies, share) for share in range(101)] if burst.latencies else [],
        "cpu_us": cpu / count * 1e6,
        "logged": sum(_PATH in line for line in lines) - _WARM_UP,
        "peak_mb": peak / 1e6,
        "connecting": {"failures": dict(connecting.failures), **_describe_latencies(connecting)},
    }


def _measure_memory(server: Running, seconds: float, count: int) -> dict[str, Any]:
    path = f"{_PATH}?seconds={seconds}"
    warm_up(server, path, _WARM_UP)
    idle = server.memory()
    waiting = measure_waiting(server, path, count, seconds)
    return {"memory_kb": None if waiting is None else waiting / 1000, "idle_mb": idle / 1e6}


def _describe_latencies(burst: Burst) -> dict[str, Any]:
    ordered = burst.latencies
    return {
        "answered": len(ordered),
        "failed": burst.count - len(ordered),
        "p50": percentile(ordered, 50) if ordered else None,
        "p99": percentile(ordered, 99) if ordered else None,
        "slowest": ordered[-1] if ordered else None,
    }


def _summarize_rounds(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    def over(*keys: str) -> dict[str, float] | None:
        values = []
        for each in rounds:
            value: Any = each
            for key in keys:
                value = value[key]
            if value is not None:
                values.append(value)
        return summarize(values) if values else None

    return {
        "rounds": len(rounds),
        "count": rounds[0]["count"],
        "answered": min(each["answered"] for each in rounds),
        "failed": max(each["failed"] for each in rounds),
        "failures": {reason: count for each in rounds for reason, count in each["failures"].items()},
        "logged": min(each["logged"] for each in rounds),
        "connecting_failed": max(each["connecting"]["failed"] for each in rounds),
        **{key: over(key) for key in ("p50", "p99", "slowest", "memory_kb", "idle_mb", "peak_mb", "cpu_us")},
        "connecting_p50": over("connecting", "p50"),
        "connecting_p99": over("connecting", "p99"),
        "quantiles": [
            summarize(values) for values in zip(*(each["quantiles"] for each in rounds), strict=False)
        ],
    }


_MEASURES = (  # key, words, unit, digits
    ("p50", "median latency", "s", 2),
    ("p99", "99th percentile of the latency", "s", 2),
    ("slowest", "slowest answer", "s", 2),
    ("memory_kb", "memory per waiting request", "KB", 1),
    ("cpu_us", "CPU time per request", "µs", 0),
    ("peak_mb", "memory of the process at most", "MB", 0),
)


def document(result: dict[str, Any]) -> str:
    peers = result["peers"]
    rounds = next(iter(peers.values()))["rounds"]
    count, seconds = result["count"], result["seconds"]
    introduction = (
        f"{count:,} connections, one `GET {_PATH}` each, a wait of {seconds:g} s; median of {rounds} rounds"
        f"{say_once(rounds, peers)}, in brackets the lowest and the highest round; memory is of the first."
    )
    parts = [introduction]
    if result["count"] < result["wanted"]:
        parts.append(f"The limit of open files allowed no more than {result['count']:,} connections.")
    parts += [
        "![Latency, memory and CPU time of the peers](images/bench-wait.svg)",
        table(
            [
                *("", "requests", "failed", "p50, s", "p99, s", "slowest, s", "KB a request"),
                *("CPU, µs a request", "memory at most, MB"),
            ],
            [
                [name, f"{peer['count']:,}", f"{peer['failed']:,}"]
                + [spread(peer[key], digits) for key, _, _, digits in _MEASURES]
                for name, peer in peers.items()
            ],
        ),
        "With connecting as part of the time, every latency from the common start:",
        table(
            ["", "failed", "p50, s", "p99, s"],
            [
                [name, f"{peer['connecting_failed']:,}"]
                + [spread(peer[key], 2) for key in ("connecting_p50", "connecting_p99")]
                for name, peer in peers.items()
            ],
        ),
        _verdicts(peers),
    ]
    lost = [
        f"{name} wrote {peer['logged']:,} access records of {peer['count']:,}."
        for name, peer in peers.items()
        if peer["logged"] != peer["count"]
    ]
    return "\n\n".join([*parts, *lost, *name_versions(result)])


def _verdicts(peers: dict[str, Any]) -> str:
    same_count = {name: peer for name, peer in peers.items() if name != SYNC.name}
    lines = []
    for key, words, unit, digits in _MEASURES:
        summaries = {name: peer[key] for name, peer in same_count.items() if peer[key]}
        if OURS.name in summaries:
            what = words[0].upper() + words[1:]
            lines += [f"- {line}" for line in compare(summaries, OURS.name, what, unit, digits)]
    return "\n".join(lines)


_README_HEADERS = {
    "en": ["", "requests", "failed", "p50", "p99", "memory a request", "CPU a request"],
    "zh-TW": ["", "請求數", "失敗", "p50", "p99", "每個請求的記憶體", "每個請求的 CPU 時間"],
}


def summarize_for_readme(result: dict[str, Any], language: str) -> str:
    units = (("p50", "s", 2), ("p99", "s", 2), ("memory_kb", "KB", 0), ("cpu_us", "µs", 0))
    return table(
        _README_HEADERS[language],
        [
            [name, f"{peer['count']:,}", f"{peer['failed']:,}"]
            + [
                f"{peer[key]['median']:,.{digits}f} {unit}" if peer[key] else "–"
                for key, unit, digits in units
            ]
            for name, peer in result["peers"].items()
        ],
    )


def draw(result: dict[str, Any], path: Path) -> None:
    from bench.figures import draw_bars, draw_shares, save, take_panels  # noqa: PLC0415 - matplotlib is slow

    peers = result["peers"]
    figure, (latency, memory, cpu) = take_panels(3, widths=(2, 1, 1))
    draw_shares(latency, {name.replace("`", ""): peer["quantiles"] for name, peer in peers.items()})
    latency.set_title(f"answered after, s (sync: {peers[SYNC.name]['count']} requests)")
    same = {name.replace("`", ""): peer for name, peer in peers.items() if name != SYNC.name}
    draw_bars(memory, {name: peer["memory_kb"] for name, peer in same.items()})
    memory.set_title("KB per waiting request")
    draw_bars(cpu, {name: peer["cpu_us"] for name, peer in same.items()})
    cpu.set_title("CPU, µs per request")
    save(figure, path)
