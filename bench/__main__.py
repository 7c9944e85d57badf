"""python -m bench CASE… [--short] [--json FILE]: measure, and render what was measured into the docs.

``--check`` measures a short form of what must not get worse, and fails where a ratio is beyond its bound.
``tables`` and ``limits`` are commands of their own, with options of their own, and no part of all cases.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import duration
from bench.cases import CHECKED, NAMES, Run
from bench.machine import GENERATOR_CORE, describe, pin, raise_file_limit
from bench.report import describe_machine, has_block, replace_block
from bench.servers import ROOT

_QUIET = 0.5  # above, something else runs, and the pages would show its share as ours or as a peer's
_APART = ("tables", "limits")  # modules of bench, which say themselves what they are
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
READMES = {"en": ROOT / "README.md", "zh-TW": ROOT / "README.zh-TW.md"}


def main() -> None:
    arguments = _read_arguments()
    names = arguments.cases or NAMES
    if arguments.render:
        render_again(names)
        return
    keeps = not (arguments.check or arguments.short or arguments.only)
    if keeps:
        for name in names:  # before the first is measured, which takes minutes
            require_markers(name)
    # As an exception, so that the servers and folders of a stopped run are cleaned up as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Servers start more than a hundred times: compiled modules are kept, as they are where one is deployed.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    files = raise_file_limit()
    machine = describe()
    pin(GENERATOR_CORE)
    if arguments.check:
        check(arguments.cases or CHECKED, arguments, files)
        return
    measured = {}
    for name in names:
        measured[name] = measure(name, arguments, files, machine)
        if keeps:
            _keep(name, measured[name])
            if machine["load_average"] <= _QUIET or arguments.publish:
                render(name, measured[name])
            else:
                print(
                    f"The pages are unchanged: expected a load average of at most {_QUIET} before the run, "
                    f"it was {machine['load_average']}. Run again on a quiet machine, or with --publish.",
                    file=sys.stderr,
                )
    if arguments.short and arguments.publish and not arguments.cases and not arguments.only:
        seconds = sum(result["took"]["seconds"] for result in measured.values())
        _keep("short", {"machine": machine, "took": {"seconds": seconds, "rounds": 1}})
        render_duration()
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, ensure_ascii=False, indent=1) + "\n", "utf-8")
    for result in measured.values():
        for peer in result.get("peers", {}).values():
            peer.pop("quantiles", None)  # for the figure, not for a reader of this line
    print(json.dumps(measured, ensure_ascii=False))


def measure(name: str, arguments: argparse.Namespace, files: int, machine: dict[str, Any]) -> dict[str, Any]:
    """Measure a case; return its result, with the machine and how long it took."""
    started = time.monotonic()
    with _prepare(arguments, files) as run:
        found = _load(name).measure(run)
    took = {"seconds": round(time.monotonic() - started, 1), "rounds": run.rounds}
    return {"machine": machine, "took": took, **found}


def _keep(name: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, ensure_ascii=False, indent=1)
    (RESULTS / f"{name}.json").write_text(f"{text}\n", "utf-8")


def read_result(name: str) -> dict[str, Any] | None:
    """Return the last result of a case, or of ``short``; None where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def check(names: Sequence[str], arguments: argparse.Namespace, files: int) -> None:
    """End with what is wrong, where a ratio is beyond its bound twice: a busy machine is so once."""
    for name in names:
        with _prepare(arguments, files) as run:
            wrong = _load(name).check(run) and _load(name).check(run)
        if wrong:
            sys.exit("\n".join(wrong))
        print(f"{name}: within its bounds", file=sys.stderr)


@contextmanager
def _prepare(arguments: argparse.Namespace, files: int) -> Iterator[Run]:
    with _data_dir() as folder:
        yield Run(
            short=arguments.short,
            rounds=1 if arguments.short else arguments.rounds,
            only=[part.lower() for part in arguments.only],
            data_dir=folder,
            files=files,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )


def render_again(names: Sequence[str]) -> None:
    """Render the last results, then end with the names of the cases that have none."""
    missing = []
    for name in names:
        result = read_result(name)
        if result is None:
            missing.append(name)
        else:
            render(name, result)
    render_duration()
    if missing:
        sys.exit(f"expected a result of each case; measure: python3 run.py bench {' '.join(missing)}")


def render(name: str, result: dict[str, Any]) -> None:
    """Write the figure and the marked blocks of the pages from a result."""
    require_markers(name)
    case = _load(name)
    case.draw(result, ROOT / "docs" / "images" / f"bench-{name}.svg")
    replace_block(PAGE, name, f"{case.document(result)}\n\n{describe_machine(result['machine'])}")
    if hasattr(case, "summarize_for_readme"):
        for language, page in READMES.items():
            replace_block(page, name, case.summarize_for_readme(result, language))
    render_duration()


def render_duration() -> None:
    """Write how long all of it took, as far as the last results say so."""
    results = {name: result for name in NAMES if (result := read_result(name)) is not None}
    _require_block(PAGE, "duration")
    replace_block(PAGE, "duration", duration.document(results, read_result("short")))


def require_markers(name: str) -> None:
    """End with the page that lacks the markers of a case: what is measured would not get there."""
    for block in (name, "duration"):
        _require_block(PAGE, block)
    if hasattr(_load(name), "summarize_for_readme"):
        for page in READMES.values():
            _require_block(page, name)


def _require_block(page: Path, name: str) -> None:
    if not has_block(page, name):
        sys.exit(f"{page.name}: expected the markers <!-- bench:{name} --> and <!-- /bench:{name} -->")


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"bench.cases.{name}")


@contextmanager
def _data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bench-data-"))
    folder.chmod(0o755)  # as root, PostgreSQL runs as another user, who has to reach it
    try:
        yield folder
    finally:
        # The embedded PostgreSQL ends itself once the last service has gone, which may still be under way.
        until = time.monotonic() + 15
        while folder.exists() and time.monotonic() < until:
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("cases", nargs="*", choices=NAMES, metavar="CASE", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--short", action="store_true", help="a few seconds each; changes no page")
    parser.add_argument("--rounds", type=int, default=2, help="how often each is measured (2)")
    parser.add_argument("--only", nargs="+", default=[], help="peers to run; changes no page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here as well")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"fail where ratios got worse, of {', '.join(CHECKED)}; changes no file",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write the pages also where the machine was not quiet; with --short, how long all cases took",
    )
    parser.add_argument(
        "--render", action="store_true", help="render the last results again, measure nothing"
    )
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in _APART:
        runpy.run_module(f"bench.{sys.argv.pop(1)}", run_name="__main__")
    else:
        main()
