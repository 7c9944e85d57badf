"""python -m bench CASE… [--short] [--json FILE]: measure, and render what was measured into the docs.

``--check`` measures a short form of what must not get worse, and fails where a ratio is beyond its bound.
"""

from __future__ import annotations

import argparse
import importlib
import json
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

from bench.cases import CHECKED, NAMES, Run
from bench.machine import GENERATOR_CORE, describe, pin, raise_file_limit
from bench.report import describe_machine, replace_block
from bench.servers import ROOT

_QUIET = 0.5  # above, something else runs, and the pages would show its share as ours or as a peer's
RESULTS = ROOT / "bench" / "results"
READMES = {"en": ROOT / "README.md", "zh-TW": ROOT / "README.zh-TW.md"}


def main() -> None:
    arguments = _read_arguments()
    if arguments.render:
        for name in arguments.cases or NAMES:
            render(name, json.loads((RESULTS / f"{name}.json").read_text("utf-8")))
        return
    # As an exception, so that the servers and folders of a stopped run are cleaned up as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    measured = {}
    files = raise_file_limit()
    machine = describe()
    pin(GENERATOR_CORE)
    if arguments.check:
        check(arguments.cases or CHECKED, arguments, files)
        return
    for name in arguments.cases or NAMES:
        with _prepare(arguments, files) as run:
            measured[name] = {"machine": machine, **_load(name).measure(run)}
        if not arguments.short and not arguments.only:
            RESULTS.mkdir(exist_ok=True)
            path = RESULTS / f"{name}.json"
            path.write_text(json.dumps(measured[name], ensure_ascii=False, indent=1) + "\n", "utf-8")
            if machine["load_average"] <= _QUIET or arguments.publish:
                render(name, measured[name])
            else:
                print(
                    f"The pages are unchanged: expected a load average of at most {_QUIET} before the run, "
                    f"it was {machine['load_average']}. Run again on a quiet machine, or with --publish.",
                    file=sys.stderr,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, ensure_ascii=False, indent=1) + "\n", "utf-8")
    for result in measured.values():
        for peer in result.get("peers", {}).values():
            peer.pop("quantiles", None)  # for the figure, not for a reader of this line
    print(json.dumps(measured, ensure_ascii=False))


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


def render(name: str, result: dict[str, Any]) -> None:
    """Write the figure and the marked blocks of the pages from a result."""
    case = _load(name)
    case.draw(result, ROOT / "docs" / "images" / f"bench-{name}.svg")
    text = f"{case.document(result)}\n\n{describe_machine(result['machine'])}"
    if not replace_block(ROOT / "docs" / "benchmarks.md", name, text):
        sys.exit(f"docs/benchmarks.md: expected the markers <!-- bench:{name} --> and <!-- /bench:{name} -->")
    for language, page in READMES.items():
        if hasattr(case, "summarize_for_readme"):
            replace_block(page, name, case.summarize_for_readme(result, language))


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
    parser.add_argument("--short", action="store_true", help="a few seconds each; changes no file")
    parser.add_argument("--rounds", type=int, default=2, help="how often each is measured (2)")
    parser.add_argument("--only", nargs="+", default=[], help="peers to run; changes no page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here as well")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"fail where ratios got worse, of {', '.join(CHECKED)}; changes no file",
    )
    parser.add_argument(
        "--publish", action="store_true", help="write the pages also where the machine was not quiet"
    )
    parser.add_argument(
        "--render", action="store_true", help="render the last results again, measure nothing"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
