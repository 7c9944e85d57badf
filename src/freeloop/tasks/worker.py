"""Takes tasks and runs them: as many at once as it may, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final, Self
from uuid import UUID, uuid4

from freeloop.database import Database, Transaction
from freeloop.events import wait_at_most
from freeloop.scope import Cause, describe_task
from freeloop.tasks import store
from freeloop.tasks.client import Tasks
from freeloop.tasks.endings import Endings
from freeloop.tasks.engine import Job
from freeloop.tasks.execution import Execution
from freeloop.tasks.heartbeat import Heartbeat
from freeloop.tasks.limits import admit, find_limits, free
from freeloop.tasks.liveness import Liveness
from freeloop.tasks.signals import CANCEL, CHANGED, MISSED, QUEUED
from freeloop.threads import ThreadPool

logger = logging.getLogger("freeloop.tasks")

_BATCH: Final = 100
_POLL_DEAF: Final = 0.5
_TICK: Final = 0.05
_PROGRESS_EVERY: Final = 0.3
_LOSSES: Final = 5
_BEATS_PER_TIMEOUT: Final = 5
_LOOKS_PER_TIMEOUT: Final = 8

_REGISTER: Final = """
insert into freeloop.workers (id, host, pid, queues) values ($1, $2, $3, $4)
"""


class Worker:
    """Runs the declared tasks, for as long as it is entered.

    Args:
        tasks: The app's tasks, open.
        queues: Which queues it takes from; None: all.
        concurrency: Tasks that run at once.
        heartbeat_timeout: Seconds without a sign of life after which others take this worker's tasks over.
        cleanup_timeout: Seconds that the clean-up of a cancelled task may take before it is cancelled again.

    Attributes:
        id: Who it is in the database.
        ended: How often each task has ended in each way here: by name and state, ``queued`` where it is to
            run again, ``lost`` where another worker had taken it over.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        queues: Collection[str] | None = None,
        concurrency: int = 100,
        heartbeat_timeout: float = 4.0,
        cleanup_timeout: float = 5.0,
    ) -> None:
        self.id = uuid4()
        self.concurrency = concurrency
        self._tasks = tasks
        self._queues = None if queues is None else frozenset(queues)
        self._heartbeat_timeout = heartbeat_timeout
        self._cleanup_timeout = cleanup_timeout
        self.ended: Counter[tuple[str, ...]] = Counter()
        self._threads = ThreadPool("tasks", size=concurrency)
        self._running: dict[UUID, Execution] = {}
        self._jobs: dict[Execution, asyncio.Task[None]] = {}
        self._stopping = False
        self._cut = False
        self._wake = asyncio.Event()  # something may be there to take
        self._room = asyncio.Event()  # something has ended, which makes room where all was taken
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, scope: object) -> bool:
        return isinstance(scope, Execution) and scope in self._jobs

    @property
    def running(self) -> tuple[Execution, ...]:
        """What runs now."""
        return tuple(self._jobs)

    async def __aenter__(self) -> Self:
        self._database: Database = self._tasks.database
        self._endings = Endings(self._database, self._tasks.engine, self._tasks.signals, self._room.set)
        self._liveness = Liveness(self._heartbeat_timeout, gap=self._heartbeat_timeout / 2)
        await self._register()
        self._stack = AsyncExitStack()
        heartbeat = Heartbeat(
            self._database.separate(name="heartbeat", statement_timeout=self._heartbeat_timeout),
            lambda: self.id,
            every=self._heartbeat_timeout / _BEATS_PER_TIMEOUT,
            on_lost=self._lose,
        )
        await self._stack.enter_async_context(heartbeat)
        self._tasks.signals.hear(self._hear)
        self._loops = [
            asyncio.create_task(loop, name=f"tasks-{name}")
            for name, loop in {
                "take": self._take_forever(),
                "write": self._endings.run(),
                "progress": self._write_progress_forever(),
                "look": self._look_forever(),
                "tend": self._tend_forever(),
                "schedule": self._tasks.schedules.run(),
            }.items()
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        """End: what still runs is handed back, in bounded time."""
        await self.finish(0.0)
        self._tasks.signals.forget(self._hear)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._stack.aclose()
        if not self._running and not len(self._endings):
            await self._leave()
        # Else others find out by its silence: what still runs here must not begin elsewhere before.

    def stop(self) -> None:
        """Take no more."""
        self._stopping = True
        self._wake.set()
        self._room.set()

    def cancel(self) -> None:
        """Cancel what runs, and hand it back: it runs again, elsewhere or later, as if it had not begun."""
        self.stop()
        self._cut = True
        for execution in self.running:
            if execution.cause is None:
                execution.cancel("shutdown")

    async def finish(self, seconds: float) -> None:
        """Take no more, let what runs end for so many seconds, then hand it back, in bounded time.

        Once it was cancelled, there is nothing to wait for.
        """
        self.stop()
        if not self._cut:
            await self._wait_idle(seconds)
        self.cancel()
        await self._wait_idle(self._cleanup_timeout)

    async def _wait_idle(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait_idle()

    async def wait_idle(self) -> None:
        """Wait until nothing runs and all ends are written."""
        await self._idle.wait()
        await self._endings.wait_written()

    async def _register(self) -> None:
        queues = None if self._queues is None else sorted(self._queues)
        await self._database.execute(_REGISTER, self.id, socket.gethostname(), os.getpid(), queues)

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(self._cleanup_timeout), self._database.transaction() as transaction:
                await transaction.execute("delete from freeloop.workers where id = $1", self.id)
                # An answer that was lost may have left jobs here that this worker does not know of.
                await self._give_back(transaction, self.id)
        except Exception as error:  # noqa: BLE001 - others find out by its silence
            logger.warning("worker %s could not sign off: %s", self.id, error)

    def _lose(self, worker: UUID) -> None:
        """Give up what another worker has taken over since this one was silent for too long."""
        if worker != self.id:
            return
        lost = [each for each in self.running if each.worker == worker]
        logger.error(
            "worker was taken for dead after %s s without a heartbeat; its tasks run elsewhere",
            self._heartbeat_timeout,
            extra={"worker": str(worker), "tasks": len(lost)},
        )
        for execution in lost:
            execution.cancel("lost")
        self.id = uuid4()
        self._wake.set()

    def _hear(self, signal: str) -> None:
        if signal in {QUEUED, MISSED}:
            self._wake.set()
        elif signal.startswith(CANCEL):
            execution = self._running.get(UUID(signal[len(CANCEL) :]))
            if execution is not None:
                self._cancel_one(execution, "request")

    @staticmethod
    def _cancel_one(execution: Execution, cause: Cause) -> None:
        if execution.cause is None and not execution.over:
            execution.cancel(cause)

    # What is taken

    async def _take_forever(self) -> None:
        pause = 0.05
        registered = self.id
        while not self._stopping:
            self._wake.clear()
            limit = min(
                _BATCH, self.concurrency - len(self._running), 2 * self.concurrency - len(self._endings)
            )
            if limit <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                if registered != self.id:
                    await self._register()
                    registered = self.id
                taken = await self._take(limit)
                if taken < limit:
                    await wait_at_most(self._wake, await self._find_pause())
                pause = 0.05
            except Exception as error:  # noqa: BLE001 - the database may be away, and comes back
                logger.warning("tasks could not be taken, which is tried again in %.2g s: %s", pause, error)
                await wait_at_most(self._wake, pause)
                pause = min(pause * 2, 1.0)

    async def _take(self, limit: int) -> int:
        worker = self.id
        names = {
            name: task.options.concurrency or 0
            for name, task in self._tasks.declared.items()
            if self._queues is None or task.options.queue in self._queues
        }
        async with self._database.transaction() as transaction:
            await store.plan_anew(transaction)
            jobs = await self._tasks.engine.take(transaction, names, worker=worker, limit=limit)
            if not jobs:
                return 0
            admitted, limited = await self._admit(transaction, jobs, worker)
            begun = await store.begin(
                transaction, worker, [job.task for job in admitted], [job.id for job in admitted]
            )
            if len(begun) < len(admitted):
                await self._drop_orphans(transaction, admitted, begun, worker)
        for each in begun:
            task = self._tasks.declared[each.name]
            self._start(Execution(task, each, worker, self._tasks.engine, limited=each.job in limited))
        return len(jobs)

    async def _admit(
        self, transaction: Transaction, jobs: Sequence[Job], worker: UUID
    ) -> tuple[Sequence[Job], Collection[int]]:
        options = {job.name: self._tasks.declared[job.name].options for job in jobs}
        grouped = [
            job.task
            for job in jobs
            if options[job.name].group_concurrency is not None or options[job.name].group_rate is not None
        ]
        groups = await store.find_groups(transaction, grouped) if grouped else {}
        return await admit(
            transaction,
            self._tasks.engine,
            jobs,
            lambda job: find_limits(
                job.name, options[job.name], groups.get(job.task), self._tasks.queue_limits
            ),
            worker=worker,
        )

    async def _drop_orphans(
        self, transaction: Transaction, jobs: Sequence[Job], begun: Sequence[store.Begun], worker: UUID
    ) -> None:
        """Remove jobs whose task has ended, or is gone."""
        alive = await transaction.fetch_value("select true from freeloop.workers where id = $1", worker)
        if not alive:
            raise RuntimeError(f"worker {worker} was taken for dead")
        known = {each.job for each in begun}
        orphans = [job.id for job in jobs if job.id not in known]
        await self._tasks.engine.remove(transaction, orphans, worker=worker)
        await free(transaction, self._tasks.engine, orphans)

    async def _find_pause(self) -> float:
        longest = self._heartbeat_timeout / 4 if self._tasks.signals.heard else _POLL_DEAF
        due = await self._tasks.engine.next_due(self._database, list(self._tasks.declared))
        return longest if due is None else min(longest, due + 0.001)

    # What runs

    def _start(self, execution: Execution) -> None:
        if self._cut:
            execution.cause = "shutdown"
        self._running[execution.task_id] = execution
        self._idle.clear()
        self._jobs[execution] = asyncio.get_running_loop().create_task(
            self._run(execution), name=f"task-{execution.route}"
        )

    async def _run(self, execution: Execution) -> None:
        try:
            ending = await execution.run(
                self._threads, self._tasks.middleware, cleanup_timeout=self._cleanup_timeout
            )
            self.ended[execution.route, "lost" if ending is None else ending.state] += 1
            if ending is not None:
                self._endings.add(execution.worker, ending)
        except BaseException:
            logger.exception("an execution ended in a way that is not written", extra=_describe(execution))
            raise
        finally:
            del self._jobs[execution]
            if self._running.get(execution.task_id) is execution:
                del self._running[execution.task_id]
            if not self._jobs:
                self._idle.set()
            self._room.set()

    # What is looked after

    async def _tend_forever(self) -> None:
        """Cancel what is overdue, and again what does not end by that."""
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            for execution in self.running:
                if execution.over:
                    continue
                if execution.cause is None:
                    if execution.deadline is not None and now >= execution.deadline:
                        execution.cancel("deadline")
                elif now - execution.cancelled_at >= self._cleanup_timeout:
                    logger.warning(
                        "a cancelled task does not end",
                        extra={**_describe(execution), "stack": describe_task(self._jobs[execution])},
                    )
                    execution.cancel(execution.cause)

    async def _write_progress_forever(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_EVERY)
            rows = []
            for execution in self.running:
                if execution.dirty:
                    execution.dirty = False
                    rows.append((execution.task_id, execution.attempt, execution.render_progress() or "null"))
            if rows:
                try:
                    await store.write_progress(self._database, rows)
                    self._tasks.signals.announce(CHANGED)
                except Exception as error:  # noqa: BLE001 - the next progress is written later
                    logger.warning("the progress of %d tasks could not be written: %s", len(rows), error)

    async def _look_forever(self) -> None:
        """Take over what dead workers leave, and find cancellations whose signal was lost."""
        while True:
            await asyncio.sleep(self._heartbeat_timeout / _LOOKS_PER_TIMEOUT)
            try:
                rows = await self._database.fetch(
                    "select id, beats from freeloop.workers where id <> $1", self.id
                )
                beats: dict[UUID, int] = {row["id"]: row["beats"] for row in rows}
                for dead in self._liveness.look(time.monotonic(), beats):
                    await self._bury(dead, beats[dead])
                for id_ in await store.find_cancelled(self._database, list(self._running)):
                    if id_ in self._running:
                        self._cancel_one(self._running[id_], "request")
            except Exception as error:  # noqa: BLE001 - the next look may succeed
                logger.warning("the other workers could not be looked at: %s", error)

    async def _bury(self, worker: UUID, beats: int) -> None:
        async with self._database.transaction() as transaction:
            gone = await transaction.fetch_value(
                "delete from freeloop.workers where id = $1 and beats = $2 returning true", worker, beats
            )
            tasks = await self._give_back(transaction, worker) if gone else 0
        if gone:
            logger.warning(
                "a worker has vanished; its tasks run again", extra={"worker": str(worker), "tasks": tasks}
            )

    async def _give_back(self, transaction: Transaction, worker: UUID) -> int:
        jobs = await self._tasks.engine.release(transaction, worker)
        if jobs:
            await free(transaction, self._tasks.engine, [job.id for job in jobs])
            over = await store.lose(transaction, [job.task for job in jobs], most=_LOSSES)
            if over:
                await self._tasks.engine.remove(transaction, over, worker=None)
            transaction.after_commit(self._tasks.signals.announce_queued)
        return len(jobs)


def _describe(execution: Execution) -> dict[str, object]:
    return {
        "task": execution.route,
        "task_id": str(execution.task_id),
        "request_id": execution.id,
        "attempt": execution.attempt,
        "cause": execution.cause,
    }
