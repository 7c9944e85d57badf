"""Finds the running processes that a command is about."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from freeloop.errors import InspectionFailed
from freeloop.insights.fleet import list_groups, read_answer, read_rings
from freeloop.insights.merge import merge
from freeloop.inspection import find_processes
from freeloop.settings import read_settings


def find_app(wanted: str | None) -> list[Path]:
    """Return the sockets of the processes that serve one app together. Blocks.

    Args:
        wanted: A process number, an app's name, or a part of its command line; None: the only one.

    Raises:
        InspectionFailed: There is none, or there are several.
    """
    folder = read_settings().runtime_dir
    if folder is None:
        raise InspectionFailed("FREELOOP_RUNTIME_DIR is none: processes open no socket then")
    processes = find_processes(folder)
    titles = {each.path: f"{each.pid} {each.title}" for each in processes}
    matching = {each.path for each in processes if wanted is None or each.matches(wanted)}
    groups: dict[int, list[Path]] = {}
    for _, path, group in list_groups(processes):
        groups.setdefault(group, []).append(path)
    found = [paths for paths in groups.values() if matching.intersection(paths)]
    if len(found) == 1:
        return found[0]
    said = "; there are: " + ", ".join(titles.values()) if titles else ""
    if not found:
        raise InspectionFailed(f"no process of this user {f'is {wanted}' if wanted else 'answers'}{said}")
    raise InspectionFailed(f"several apps run: name one by its number or its name{said}")


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
