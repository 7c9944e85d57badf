"""Every change of a task's state, in any order, against a model: what the database says is what must be."""

import asyncio
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from freeloop.database import Database
from freeloop.database.migrations import migrate
from freeloop.errors import TaskLost
from freeloop.tasks import Tasks
from freeloop.tasks.endings import Endings, _Entry
from freeloop.tasks.pgqueuer_engine import PgQueuerEngine
from freeloop.tasks.schema import TASKS, TASKS_SCHEMA
from freeloop.tasks.worker import _LOSSES, Worker
from task_rooms import declare

RETRIES = 1
TRUTH = """
select task.id, task.state, task.attempt, task.failures, task.losses, task.worker,
    job.status, job.queue_manager_id
from freeloop.tasks as task left join freeloop.pgqueuer as job on job.id = task.job
"""
ORPHANS = "select count(*) from freeloop.pgqueuer where id not in (select job from freeloop.tasks)"


class RolledBack(Exception):
    """Raised out of a transaction."""


def roll_back(*, unless):
    if not unless:
        raise RolledBack


@dataclass
class Model:
    """What one task must be."""

    state: str = "queued"
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    worker: UUID | None = None
    cancelling: bool = False
    executions: list = field(default_factory=list)


class Crew:
    """Two workers whose every step is taken by hand."""

    def __init__(self, tasks):
        self.tasks = tasks
        self.taken = []

    async def hire(self):
        worker = Worker(self.tasks)
        worker._database = self.tasks.database
        worker._endings = Endings(self.tasks.database, self.tasks.engine, self.tasks.signals, lambda: None)
        worker._start = self.taken.append
        await worker._register()
        return worker


class TaskMachine(RuleBasedStateMachine):
    """Starts, takes, ends, loses, cancels and retries."""

    address = None
    ids = Bundle("ids")

    def __init__(self):
        super().__init__()
        self.models = {}
        self.keys = {}
        self.runner = asyncio.Runner()
        self.run(self.open())

    def run(self, coroutine):
        return self.runner.run(coroutine)

    async def open(self):
        self.database = Database(self.address, name="model")
        await self.database.open()
        await self.database.execute(
            "truncate freeloop.tasks, freeloop.pgqueuer, freeloop.workers, freeloop.schedules; "
            "create table if not exists effects (task uuid); truncate effects"
        )
        self.tasks = Tasks()
        self.effects = set()

        @declare(self.tasks, retries=RETRIES, backoff=0)
        async def work(n: int) -> int:
            return n

        self.work = work
        self.context = self.tasks.open(self.database, PgQueuerEngine())
        await self.context.__aenter__()
        self.crew = Crew(self.tasks)
        self.workers = [await self.crew.hire() for _ in range(2)]

    def teardown(self):
        self.run(self.close())
        self.runner.close()

    async def close(self):
        await self.context.__aexit__(None, None, None)
        await self.database.close()

    @rule(target=ids, n=st.integers(0, 9), key=st.sampled_from([None, "a", "b"]), commits=st.booleans())
    def start(self, n, key, commits):
        handle = self.run(self._start(n, key, commits))
        if key in self.keys:
            assert (handle.id, handle.created) == (self.keys[key], False)
        else:
            assert handle.created
            if commits:
                self.models[handle.id] = Model()
                if key:
                    self.keys[key] = handle.id
        return handle.id

    async def _start(self, n, key, commits):
        handle = None
        try:
            async with self.database.transaction() as transaction:
                handle = await self.tasks.start(self.work, n, key=key, in_=transaction)
                roll_back(unless=commits)
        except RolledBack:
            pass
        return handle

    @rule(which=st.integers(0, 1), limit=st.integers(1, 3))
    def take(self, which, limit):
        worker = self.workers[which]
        self.crew.taken.clear()
        self.run(worker._take(limit))
        waiting = [id_ for id_, model in self.models.items() if model.state == "queued"]
        assert len(self.crew.taken) == min(limit, len(waiting))
        for execution in self.crew.taken:
            model = self.models[execution.task_id]
            assert model.state == "queued"
            model.state, model.worker, model.cancelling = "running", worker.id, False
            model.attempt += 1
            model.executions.append(execution)

    def executions(self):
        return [each for model in self.models.values() for each in model.executions]

    @precondition(lambda self: self.executions())
    @rule(data=st.data(), how=st.sampled_from(["success", "failure", "cancellation", "shutdown"]))
    def end(self, data, how):
        """End an execution: the task's own, or one that was taken over and does not know it yet."""
        execution = data.draw(st.sampled_from(self.executions()))
        model = self.models[execution.task_id]
        match how:
            case "success":
                ending, state = execution._succeed(1), "succeeded"
            case "failure":
                ending = execution._fail(ValueError("no"))
                state = "queued" if execution._begun.failures < RETRIES else "failed"
            case "cancellation" | "shutdown":
                execution.cause = "request" if how == "cancellation" else "shutdown"
                ending, state = execution._judge(asyncio.CancelledError()), ending_state(how)
        self.run(self.workers[0]._endings._write([_Entry(execution.worker, ending)]))
        model.executions.remove(execution)
        if self.owns(execution):
            model.state, model.worker = state, None
            model.failures += how == "failure"

    def owns(self, execution):
        model = self.models[execution.task_id]
        return (model.state, model.worker, model.attempt) == ("running", execution.worker, execution.attempt)

    @precondition(lambda self: self.executions())
    @rule(data=st.data(), commits=st.booleans())
    def complete(self, data, commits):
        """End an execution in the transaction of its own write."""
        execution = data.draw(st.sampled_from(self.executions()))
        owned = self.owns(execution)
        done = self.run(self._complete(execution, commits))
        assert done is (owned and commits)
        if done:
            assert execution.task_id not in self.effects
            self.effects.add(execution.task_id)
            model = self.models[execution.task_id]
            model.state, model.worker = "succeeded", None

    async def _complete(self, execution, commits):
        try:
            async with self.database.transaction() as transaction:
                await transaction.execute("insert into effects values ($1)", execution.task_id)
                await execution.complete(transaction, 1)
                roll_back(unless=commits)
        except (TaskLost, RolledBack):
            return False
        return True

    @rule(which=st.integers(0, 1))
    def die(self, which):
        """A worker is taken for dead; what it ran runs on, as after a pause of the whole process."""
        dead, other = self.workers[which], self.workers[1 - which]
        self.run(other._bury(dead.id, 0))
        for model in self.models.values():
            if model.worker == dead.id:
                model.losses += 1
                model.worker = None
                lost = "failed" if model.losses >= _LOSSES else "queued"
                model.state = "cancelled" if model.cancelling else lost
        self.workers[which] = self.run(self.crew.hire())

    @rule(which=st.integers(0, 1))
    def take_while_dead(self, which):
        """A worker that was taken for dead takes nothing."""
        ghost = self.workers[which]
        before, ghost.id = ghost.id, uuid4()
        waiting = any(model.state == "queued" for model in self.models.values())
        try:
            if waiting:
                with pytest.raises(RuntimeError, match="taken for dead"):
                    self.run(ghost._take(1))
        finally:
            ghost.id = before

    @rule(id_=ids)
    def cancel(self, id_):
        if (model := self.models.get(id_)) is None:
            return
        done = self.run(self.tasks.cancel(id_))
        assert done is (model.state in {"queued", "running"})
        if model.state == "queued":
            model.state = "cancelled"
        elif model.state == "running":
            model.cancelling = True

    @rule(id_=ids)
    def retry(self, id_):
        if (model := self.models.get(id_)) is None:
            return
        done = self.run(self.tasks.retry(id_))
        assert done is (model.state in {"failed", "cancelled"})
        if done:
            self.models[id_] = replaced(model, state="queued", failures=0, losses=0, cancelling=False)

    @invariant()
    def the_database_agrees(self):
        rows = self.run(self.database.fetch(TRUTH))
        found = {row["id"]: row for row in rows}
        assert found.keys() == self.models.keys()
        for id_, model in self.models.items():
            row = found[id_]
            assert (row["state"], row["attempt"], row["failures"], row["losses"], row["worker"]) == (
                model.state,
                model.attempt,
                model.failures,
                model.losses,
                model.worker,
            )
            assert row["status"] == {"queued": "queued", "running": "picked"}.get(model.state)
            assert row["queue_manager_id"] == model.worker
        assert self.run(self.database.fetch_value(ORPHANS)) == 0
        effects = self.run(self.database.fetch("select task from effects"))
        assert sorted(row["task"] for row in effects) == sorted(self.effects)


def ending_state(how):
    return "cancelled" if how == "cancellation" else "queued"


@pytest.mark.timeout(300)
def test_every_change_of_state_is_as_the_model_says(postgres):
    async def make(sql):
        connection = await asyncpg.connect(**postgres.arguments())
        await connection.execute(sql)
        await connection.close()

    asyncio.run(make("create database task_model"))
    TaskMachine.address = replaced(postgres, database="task_model")
    asyncio.run(migrate(TaskMachine.address, TASKS, schema=TASKS_SCHEMA))
    try:
        run_state_machine_as_test(
            TaskMachine,
            settings=settings(
                max_examples=40,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        asyncio.run(make("drop database task_model with (force)"))
