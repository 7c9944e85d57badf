"""Pytest: a test fails that blocks the event loop, with the line that does and what to do, or that leaks.

``@pytest.mark.no_blocking(threshold=…)`` asks for it by test, ``--freeloop`` for every async test of a suite.
What a suite has now and nobody mends today stands in a baseline file: one line for each function, with a
reason behind a ``#``. ``@pytest.mark.no_leaks(within=…)`` and ``--freeloop-leaks`` look for what is left
once a test and its fixtures have ended. Part of :mod:`freeloop.testing.plugin`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any, Final

import pytest

from freeloop.testing.leaks import Held, list_leaks, list_tasks
from freeloop.watch import Finding, watch

_BASELINE: Final = "freeloop-baseline.txt"
_GRACE: Final = 5.0  # seconds that what ends by itself may take
_key: Final = pytest.StashKey["Baseline"]()


class Baseline:
    """The functions that may block, and those that did.

    Args:
        file: Where they stand; it need not exist.
        root: The folder that their files are told from.
    """

    def __init__(self, file: Path, root: Path) -> None:
        self.file = file
        self.met: set[str] = set()
        self._root = root
        self._reasons: dict[str, str] = {}
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                entry, _, reason = line.partition("#")
                if entry.strip():
                    self._reasons[entry.strip()] = reason.strip()

    def name(self, finding: Finding) -> str:
        """Return the line of a finding: not its number, which changes with each edit above it."""
        file = Path(finding.file)
        shown = file.relative_to(self._root) if file.is_relative_to(self._root) else file
        return f"{shown.as_posix()}:{finding.function} {finding.cause}"

    def covers(self, finding: Finding) -> bool:
        """Return whether it is known, and note that it was met."""
        name = self.name(finding)
        self.met.add(name)
        return name in self._reasons

    def list_unmet(self) -> list[str]:
        """Return those that did not block."""
        return sorted(self._reasons.keys() - self.met)

    def write(self) -> None:
        """Write those that did, with the reasons that are known."""
        rows = [
            f"{name}  # {reason}" if (reason := self._reasons.get(name)) else name
            for name in sorted(self.met)
        ]
        self.file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("freeloop")
    group.addoption("--freeloop", action="store_true", help="Fail async tests that block the event loop.")
    group.addoption(
        "--freeloop-threshold", type=float, default=0.1, help="From how many seconds on. [default: 0.1]"
    )
    group.addoption(
        "--freeloop-baseline", default=_BASELINE, help=f"Functions that may. [default: {_BASELINE}]"
    )
    group.addoption(
        "--freeloop-update", action="store_true", help="Write the baseline in place of failing tests."
    )
    group.addoption(
        "--freeloop-leaks",
        type=float,
        metavar="SECONDS",
        help="Fail async tests that leave tasks, leases or connections behind for so long.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the baseline, and declare the marks."""
    config.addinivalue_line(
        "markers",
        "no_blocking(threshold=0.1): fails where it blocks the loop for so many seconds; None: it may",
    )
    config.addinivalue_line(
        "markers",
        f"no_leaks(within={_GRACE:g}): fails where it leaves tasks, leases or connections behind that are "
        "still there after so many seconds",
    )
    config.stash[_key] = Baseline(config.rootpath / config.getoption("--freeloop-baseline"), config.rootpath)


def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """Give an async test that is not to leak the fixture that looks, before those that it asks for itself."""
    marks = {mark.name for mark in (*collector.iter_markers(), *getattr(obj, "pytestmark", ()))}
    wanted = "no_leaks" in marks or collector.config.getoption("--freeloop-leaks") is not None
    if wanted and inspect.iscoroutinefunction(obj) and collector.istestfunction(obj, name):
        pytest.mark.usefixtures(_leaves_nothing.__name__)(obj)


@pytest.fixture
async def _leaves_nothing(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fail where something is left once the other fixtures of the test have ended."""
    mark = request.node.get_closest_marker("no_leaks")
    within = mark.kwargs.get("within", _GRACE) if mark else request.config.getoption("--freeloop-leaks")
    tasks, held = list_tasks(), Held()
    yield
    if leaks := await list_leaks(tasks, held, within=within):
        pytest.fail("the test leaves behind:\n" + "\n".join(f"  {each}" for each in leaks), pytrace=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run an async test under the watch, where it is asked for."""
    mark = pyfuncitem.get_closest_marker("no_blocking")
    config = pyfuncitem.config
    original = pyfuncitem.obj
    threshold = config.getoption("--freeloop-threshold") if mark or config.getoption("--freeloop") else None
    if mark:
        threshold = mark.kwargs.get("threshold", threshold)
    if mark and threshold is not None and not inspect.iscoroutinefunction(original):
        pytest.fail("the mark no_blocking needs an async test", pytrace=False)
    if pyfuncitem.get_closest_marker("no_leaks") and _leaves_nothing.__name__ not in pyfuncitem.fixturenames:
        pytest.fail(
            "the mark no_leaks needs an async test, on itself, its class or its module", pytrace=False
        )
    if threshold is None or not inspect.iscoroutinefunction(original):
        return (yield)
    pyfuncitem.obj = _watched(original, threshold, config)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = original


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tell which lines of the baseline may go."""
    if config.getoption("--freeloop") and (unmet := config.stash[_key].list_unmet()):
        terminalreporter.section("freeloop: the baseline has lines that were not met")
        terminalreporter.write_line("\n".join(unmet))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the baseline, where it is asked for."""
    if session.config.getoption("--freeloop-update"):
        session.config.stash[_key].write()


def _watched(test: Callable[..., Any], threshold: float, config: pytest.Config) -> Callable[..., Any]:
    baseline = config.stash[_key]

    @functools.wraps(test)
    async def run(*args: object, **kwargs: object) -> None:
        # Without the timer: its signal, SIGALRM, is what pytest-timeout may use for itself.
        with watch(threshold=threshold, backstop=False) as watching:
            await asyncio.sleep(0)  # its first heartbeat
            await test(*args, **kwargs)
            await watching.catch_up()
        found = [each for each in watching.findings() if not baseline.covers(each)]
        if found and not config.getoption("--freeloop-update"):
            pytest.fail("\n".join(_describe(each) for each in found), pytrace=False)

    return run


def _describe(finding: Finding) -> str:
    stack = "\n".join(f"    {line}" for line in finding.stack[:10])
    return (
        f"the event loop was blocked for {finding.longest:.3f} s ({finding.cause}) at {finding.place}\n"
        f"  {finding.advice}\n{stack}"
    )
