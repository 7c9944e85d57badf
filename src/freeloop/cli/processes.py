"""Finds the running processes that a command is about."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from freeloop.errors import InspectionFailed
from freeloop.insights.fleet import list_groups, read_answer, read_rings
from freeloop.insights.merge import merge
from freeloop.inspection import Process, find_processes
from freeloop.settings import read_settings


class App:
    """The processes that serve one app together; they come and go.

    Args:
        folder: Where their sockets are.
        group: What they have in common.
    """

    def __init__(self, folder: Path, group: int) -> None:
        self._folder = folder
        self._group = group
        self._known: set[int] | None = None

    def find(self) -> tuple[list[Path], tuple[int, ...]]:
        """Return the sockets of those that answer, and the numbers of those that do not. Blocks.

        Of one that has never answered nobody knows whose it is: those that do not answer at the first call
        count as of the app, later ones only if they have answered before.

        Raises:
            InspectionFailed: None of them is left.
        """
        processes = find_processes(self._folder)
        found = [(pid, path) for pid, path, group in list_groups(processes) if group == self._group]
        silent = {each.pid for each in processes if each.silent}
        self._known = (silent if self._known is None else self._known) | {pid for pid, _ in found}
        silent &= self._known
        if not found and not silent:
            raise InspectionFailed("the app has ended")
        return [path for _, path in found], tuple(sorted(silent))


def find_app(wanted: str | None) -> App:
    """Return an app that runs. Blocks.

    Args:
        wanted: As of :func:`find_running`; None: the only one.

    Raises:
        InspectionFailed: There is none, or there are several.
    """
    folder, found = find_running(wanted)
    groups = {group for _, _, group in list_groups(found)}
    if not groups:
        raise not_answering(found[0])
    if len(groups) > 1:
        raise InspectionFailed(
            f"several apps run: name one by its number or its name; there are: {_enumerate(found)}"
        )
    return App(folder, groups.pop())


def find_running(wanted: str | None) -> tuple[Path, list[Process]]:
    """Return the folder of the sockets, and the processes that somebody means; at least one. Blocks.

    Args:
        wanted: A process number, an app's name, or a part of its command line; None: all of this user.

    Raises:
        InspectionFailed: There is none.
    """
    folder = read_settings().runtime_dir
    if folder is None:
        raise InspectionFailed("FREELOOP_RUNTIME_DIR is none: processes open no socket then")
    running = find_processes(folder)
    found = [each for each in running if wanted is None or each.matches(wanted)]
    if not found:
        others = f"; there are: {_enumerate(running)}" if running else ""
        raise InspectionFailed(
            f"no process of this user {'answers' if wanted is None else f'is {wanted}'}{others}. It must run "
            f"an app with Freeloop, with the same FREELOOP_RUNTIME_DIR ({folder})."
        )
    return folder, found


def not_answering(process: Process) -> InspectionFailed:
    """Return the error that a process does not answer."""
    return InspectionFailed(
        f"process {process.pid} does not answer: it is stopped, or something in it holds the GIL"
    )


def _enumerate(processes: Iterable[Process]) -> str:
    return ", ".join(f"{each.pid} {each.title}" for each in processes)


def ask_app(sockets: list[Path], question: str) -> Any:  # noqa: ANN401 - as freeloop.insights.fleet.KINDS has it
    """Put a question to all processes of an app, as one. Blocks.

    Raises:
        InspectionFailed: None of them answers.
    """
    answers, failure = [], InspectionFailed("no process answers")
    for path in sockets:
        try:
            answers.append(read_answer(path, question))
        except InspectionFailed as error:
            failure = error
        except OSError:
            continue  # it has ended
    if not answers:
        raise failure
    return merge(answers)


def find_deadlocks(sockets: list[Path]) -> tuple[tuple[int, int], ...]:
    """Return the deadlocks in all processes of an app, as a snapshot has them. Blocks."""
    rings: list[tuple[int, int]] = []
    for path in sockets:
        with suppress(InspectionFailed, OSError):  # it has ended
            rings += read_rings(path)
    return tuple(rings)
