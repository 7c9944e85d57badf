"""What a command shows on a terminal while it takes long."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LONG: Final = 1.0  # seconds from which on something is shown


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on standard error what a command does and for how long, where that takes longer than a second.

    It is gone at the end. Nothing is shown where standard error is no terminal. Print behind the block, not
    within: both would write to the same lines.
    """
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    shown = threading.Thread(target=_show, args=(what, over), daemon=True)
    shown.start()
    try:
        yield
    finally:
        over.set()
        shown.join()


def _show(what: str, over: threading.Event) -> None:
    if over.wait(_LONG):
        return
    # Imported here: most commands have ended by now.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(what, total=None)
        over.wait()
