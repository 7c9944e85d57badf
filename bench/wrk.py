"""A load generator that others wrote, beside ours: the answers a second that wrk gets of the same servers."""

from __future__ import annotations

import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from operator import truediv
from typing import Any

from bench.machine import read_version
from bench.report import spread, summarize, table
from bench.servers import Running
from bench.slices import load, load_in_turn, pair

# By name and generator: what was measured, slice by slice.
Rates = dict[str, dict[str, dict[str, list[float]]]]


def find_version() -> str | None:
    """Return the version of wrk; None where there is none."""
    return read_version("wrk", "-v")


def measure_by_both(
    servers: Mapping[str, Running], path: str, callers: int, count: int, slices: int
) -> Rates:
    """Load each server by ours and by wrk in turn, as fast as it answers; return the answers a second.

    Args:
        servers: By name.
        path: What they are asked for.
        callers: Connections that a generator keeps busy.
        count: Requests that ours sends a slice; wrk sends for a second, the least that it can.
        slices: How often each of the two loads each server.
    """
    measured: Rates = {}
    for name, server in servers.items():
        ask = {
            "ours": lambda server=server: load(server, path, callers, count).rate,
            "wrk": lambda server=server: _run(server, path, callers),
        }
        rates = load_in_turn(list(ask), slices, lambda generator, ask=ask: ask[generator]())
        measured[name] = {generator: {"rate": found} for generator, found in rates.items()}
    return measured


def _run(server: Running, path: str, callers: int) -> float:
    """Return the answers a second that wrk counts; it runs on the caller's core."""
    server.wait_still()
    url = f"http://127.0.0.1:{server.port}{path}"
    command = ("wrk", "--threads", "1", "--connections", f"{callers}", "--duration", "1s", url)
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    return read_rate(said)


def read_rate(said: str) -> float:
    """Return the answers a second that wrk reports.

    Raises:
        RuntimeError: It reports none, or answers that failed.
    """
    found = re.search(r"^Requests/sec: +([\d.]+)$", said, re.MULTILINE)
    if found is None or re.search(r"^ *(Non-2xx|Socket errors)", said, re.MULTILINE):
        raise RuntimeError(f"expected wrk to be answered with success, it said:\n{said}")
    return float(found[1])


def summarize_by_both(rounds: Sequence[Rates]) -> dict[str, Any]:
    """Return medians over the rounds by name, and how many times as many answers wrk gets."""
    return {
        name: {
            **{
                generator: summarize([statistics.median(each[name][generator]["rate"]) for each in rounds])
                for generator in ("ours", "wrk")
            },
            "ratio": pair(
                [each[name]["wrk"] for each in rounds],
                [each[name]["ours"] for each in rounds],
                "rate",
                truediv,
            ),
        }
        for name in rounds[0]
    }


def document_by_both(version: str, summaries: Mapping[str, Any]) -> str:
    """Return the table of what both generators got, with the sentence in front of it."""
    heading = (
        f"The same load at full speed by wrk {version}, in turn with ours. Where wrk gets more answers a "
        "second, our generator is a part of the requests/s above; the CPU time of a request is the server's "
        "alone:"
    )
    rows = [
        [name, spread(each["ours"], 0), spread(each["wrk"], 0), spread(each["ratio"], 2)]
        for name, each in summaries.items()
    ]
    return f"{heading}\n\n{table(['answers/s', 'by ours', 'by wrk', 'times ours'], rows)}"
