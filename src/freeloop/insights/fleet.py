"""The processes that serve one app together, asked as one: this one at once, the others by their sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import TypeAdapter

from freeloop.errors import FreeloopError, InspectionFailed
from freeloop.insights.answers import (
    Answer,
    BlocksAnswer,
    DatabaseAnswer,
    HistoryAnswer,
    RequestsAnswer,
    Snapshot,
    UpstreamsAnswer,
)
from freeloop.insights.durable import TaskInsights
from freeloop.insights.looks import SharedLook
from freeloop.insights.merge import merge
from freeloop.insights.process import Insights, count_rings
from freeloop.insights.shared import Shared
from freeloop.inspection import Process, ask, find_processes
from freeloop.tree.model import Snapshot as TreeSnapshot
from freeloop.tree.model import read_snapshot

KINDS: Final[Mapping[str, type[Any]]] = {
    "now": Snapshot,
    "history": HistoryAnswer,
    "requests": RequestsAnswer,
    "blocks": BlocksAnswer,
    "database": DatabaseAnswer,
    "upstreams": UpstreamsAnswer,
}
_TIMEOUT: Final = 3.0  # seconds that one of them may take to answer
_GOOD_FOR: Final = 0.5  # seconds that an answer serves whoever asks, whatever is shown of it
_LOOK_EVERY: Final = 5.0  # seconds between two looks at which processes there are, and who waits for whom


class Fleet:
    """Asks all processes of an app, or one of them: once for all who ask at about the same time.

    Args:
        own: This process.
        tasks: The durable tasks.
        folder: Where the others' sockets are; None: there are none.
    """

    def __init__(self, own: Insights, tasks: TaskInsights, folder: Path | None) -> None:
        self.own = own
        self.tasks = tasks
        self._folder = folder
        self._peers: dict[int, Path] = {}
        self._silent: tuple[int, ...] = ()
        self._answers: Shared[Any] = Shared()
        # With a lock for each: who waits for a look takes no thread, of which an app has few.
        self._looks: dict[int, tuple[SharedLook, asyncio.Lock]] = {}
        self._own_look = own.tree, asyncio.Lock()
        self._looked = -_LOOK_EVERY
        self._rings: tuple[tuple[int, int], ...] = ()
        self._rings_at = -_LOOK_EVERY
        self._unread = ""
        self._slow: tuple[tuple[tuple[str, str, int], ...], int | None] = ((), None)

    async def list_processes(self) -> list[int]:
        """Return their numbers, this one's included."""
        return sorted([self.own.process, *await self._find_peers(), *self._silent])

    async def answer(self, question: str, process: int | None = None) -> Any:  # noqa: ANN401 - as KINDS has it
        """Answer a question for all processes, or for one of them.

        Args:
            question: A key of :data:`KINDS`.
            process: Which one; None: all of them.
        """
        key = (question, process)
        return await self._answers.get(key, _GOOD_FOR, partial(self._ask, question, process))

    async def _ask(self, question: str, process: int | None) -> Any:  # noqa: ANN401 - as KINDS has it
        peers = await self._find_peers()
        own = [self.own.answer(question)] if process in {None, self.own.process} else []
        asked = {pid: path for pid, path in peers.items() if process in {None, pid}}
        answers = await asyncio.gather(
            *(asyncio.to_thread(read_answer, path, question) for path in asked.values()),
            return_exceptions=True,
        )
        found: list[Answer] = [*own, *(each for each in answers if not isinstance(each, BaseException))]
        merged: Any = merge(found) if found else KINDS[question]()
        silent = tuple(pid for pid in self._silent if process in {None, pid}) + tuple(
            pid for pid, each in zip(asked, answers, strict=True) if isinstance(each, BaseException)
        )
        if isinstance(merged, Snapshot):
            merged = await self._complete(merged, silent)
        return merged

    async def _complete(self, snapshot: Snapshot, silent: tuple[int, ...]) -> Snapshot:
        """Add what takes a look at all tasks or a statement: anew every 5 s, however many look."""
        if time.monotonic() - self._rings_at >= _LOOK_EVERY:
            self._rings_at = time.monotonic()
            await self._count_rings()
            if self.tasks.askable:
                try:
                    self._slow = (await self.tasks.read_failures(), await self.tasks.count_workers())
                except FreeloopError:
                    self._slow = ((), None)  # the database is away, which others tell of
        failures, workers = self._slow
        return replace(
            snapshot,
            silent=silent,
            deadlocks=self._rings,
            unread=self._unread,
            task_failures=failures,
            workers=workers,
        )

    async def _count_rings(self) -> None:
        try:
            trees = await self.look()
        except InspectionFailed as error:
            self._rings, self._unread = (), error.detail
        else:
            self._rings = tuple(ring for _, tree in trees for ring in count_rings(tree))
            self._unread = ""

    async def look(self, process: int | None = None) -> list[tuple[int, TreeSnapshot]]:
        """Return what all tasks wait for, by process, as of the last look: see :class:`SharedLook`.

        Raises:
            InspectionFailed: What the tasks of this process wait for could not be read.
        """
        trees = []
        if process in {None, self.own.process} and self.own.parts.tree() is not None:
            trees.append((self.own.process, await _share(*self._own_look)))
        await self._find_peers()
        for pid, look in self._looks.items():
            if process in {None, pid}:
                try:
                    trees.append((pid, await _share(*look)))
                except (OSError, InspectionFailed):
                    continue  # it has ended
        return trees

    async def cancel(self, process: int, number: int, *, who: str) -> bool:
        """Cancel a scope; return whether it was there."""
        try:
            if process == self.own.process:
                return self.own.cancel(number, who=who)
            path = (await self._find_peers()).get(process)
            return path is not None and await asyncio.to_thread(_cancel, path, number, who)
        finally:
            self._answers.clear()

    async def _find_peers(self) -> dict[int, Path]:
        # A process that nobody has started together with others has none.
        if self._folder is None or self.own.group == self.own.process:
            return {}
        if time.monotonic() - self._looked >= _LOOK_EVERY:
            self._looked = time.monotonic()
            found, silent = await asyncio.to_thread(find_group, self._folder, self.own.group)
            # Of one that never answered nobody knows whose it is.
            self._silent = tuple(sorted(silent & {*self._peers, *self._silent}))
            self._peers = {pid: path for pid, path in found.items() if pid != self.own.process}
            known = self._looks
            self._looks = {
                pid: known.get(pid) or (SharedLook(partial(read_tree, path)), asyncio.Lock())
                for pid, path in self._peers.items()
            }
        return self._peers


async def _share(look: SharedLook, looking: asyncio.Lock) -> TreeSnapshot:
    if (known := look.fresh) is not None:
        return known
    async with looking:
        if (known := look.fresh) is not None:  # made while this one waited
            return known
        return await asyncio.to_thread(look.get)


def find_group(folder: Path, group: int | None) -> tuple[dict[int, Path], set[int]]:
    """Return the processes that serve one app together, and the numbers of all that do not answer. Blocks."""
    processes = find_processes(folder)
    found = {pid: path for pid, path, theirs in list_groups(processes) if theirs == group}
    return found, {each.pid for each in processes if each.silent}


def list_groups(processes: Iterable[Process]) -> Iterator[tuple[int, Path, int]]:
    """Yield each process that answers, its socket and its group. Blocks."""
    for process in processes:
        if process.silent:
            continue
        try:
            (answer,) = ask(process.path, "insights", timeout=_TIMEOUT, of="group")
        except (OSError, InspectionFailed):
            continue  # it has ended, or is of another version
        yield process.pid, process.path, answer["group"]


def read_answer(path: Path, question: str) -> Any:  # noqa: ANN401 - as KINDS has it
    """Put a question to a process. Blocks.

    Raises:
        InspectionFailed: It does not answer in time.
    """
    (answer,) = ask(path, "insights", timeout=_TIMEOUT, of=question)
    return TypeAdapter(KINDS[question]).validate_json(orjson.dumps(answer["answer"]))


def read_tree(path: Path) -> TreeSnapshot:
    """Return what all tasks of a process wait for, as of the last look that it shares. Blocks.

    Raises:
        InspectionFailed: It does not answer in time.
    """
    return read_snapshot(ask(path, "insights", timeout=_TIMEOUT * 3, of="tree"))


def read_rings(path: Path) -> tuple[tuple[int, int], ...]:
    """Return the deadlocks of a process as :func:`count_rings` does, as of the same look. Blocks.

    Raises:
        InspectionFailed: It does not answer in time.
    """
    (answer,) = ask(path, "insights", timeout=_TIMEOUT * 3, of="rings")
    return tuple((tasks, behind) for tasks, behind in answer["rings"])


def _cancel(path: Path, number: int, who: str) -> bool:
    (answer,) = ask(path, "insights", timeout=_TIMEOUT, of="cancel", number=number, who=who)
    return bool(answer["cancelled"])
