"""Writes how executions ended, many in one transaction: what ends while one is written shares the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import orjson

from freeloop.database import Database
from freeloop.errors import StatementTimeout, Unavailable
from freeloop.tasks import store
from freeloop.tasks.engine import Engine
from freeloop.tasks.limits import free
from freeloop.tasks.signals import CHANGED, Signals
from freeloop.tasks.store import Ending

logger = logging.getLogger("freeloop.tasks")

_MOST: Final = 500
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Entry:
    worker: UUID
    ending: Ending


class Endings:
    """What has ended and is not written yet.

    Args:
        database: Where to.
        engine: What has the jobs.
        signals: What tells of it.
        on_written: Called when some have been written.
    """

    def __init__(
        self, database: Database, engine: Engine, signals: Signals, on_written: Callable[[], object]
    ) -> None:
        self._on_written = on_written
        self._database = database
        self._engine = engine
        self._signals = signals
        self._entries: list[_Entry] = []
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, worker: UUID, ending: Ending) -> None:
        """Have an ending written."""
        self._entries.append(_Entry(worker, ending))
        self._empty.clear()
        self._wake.set()

    async def wait_written(self) -> None:
        """Wait until all are written."""
        await self._empty.wait()

    async def run(self) -> None:
        """Write them as they come, and again what could not be written while the database was away."""
        pause = _FIRST_PAUSE
        while True:
            if not self._entries:
                self._empty.set()
                self._wake.clear()
                await self._wake.wait()
            batch = self._entries[:_MOST]
            try:
                await self._write(batch)
            except (Unavailable, StatementTimeout) as error:
                logger.warning("%d ends of tasks are written as soon as it works: %s", len(batch), error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            except Exception as error:  # noqa: BLE001 - one of them, which must not hold up the others
                await self._write_each(batch, error)
            pause = _FIRST_PAUSE
            del self._entries[: len(batch)]
            self._on_written()

    async def _write_each(self, batch: Sequence[_Entry], error: Exception) -> None:
        if len(batch) > 1:
            for entry in batch:
                try:
                    await self._write([entry])
                except Exception as own:  # noqa: BLE001 - as above
                    await self._write_each([entry], own)
            return
        ((entry),) = batch
        logger.error("the end of task %s could not be written: %s", entry.ending.id, error)
        text = orjson.dumps(
            {"type": type(error).__qualname__, "message": str(error), "traceback": None}
        ).decode()
        failed = replace(entry.ending, state="failed", result=None, progress=None, error=text, failed=True)
        try:
            await self._write([_Entry(entry.worker, failed)])
        except Exception:
            logger.exception("nor that it failed: it runs again when its worker has ended")

    async def _write(self, batch: Sequence[_Entry]) -> None:
        async with self._database.transaction() as transaction:
            await store.plan_anew(transaction)
            for worker in {entry.worker for entry in batch}:
                endings = [entry.ending for entry in batch if entry.worker == worker]
                over = [each.job for each in endings if each.state != "queued"]
                again = {each.job: each.delay for each in endings if each.state == "queued"}
                # The job first: whoever has that owns the task.
                owned = await self._engine.remove(transaction, over, worker=worker) if over else set()
                if again:
                    owned |= await self._engine.put_back(transaction, again, worker=worker)
                mine = [each for each in endings if each.job in owned]
                if limited := [each.job for each in mine if each.frees]:
                    await free(transaction, self._engine, limited)
                await store.finish(transaction, mine)
        self._signals.announce(CHANGED)
        if any(entry.ending.state == "queued" or entry.ending.frees for entry in batch):
            self._signals.announce_queued()
