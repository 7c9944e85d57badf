"""Workers, PostgreSQL and the starter are killed at random; then the books are compared.

For hours: ``python tests/adversity/task_chaos.py --tasks 1000000 --seed 7`` (with ``tests`` and
``tests/adversity`` on PYTHONPATH). The seed decides who is killed and when.
"""

import argparse
import asyncio
import collections
import itertools
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from task_processes import TABLES, WorkerProcesses, connected, working

from freeloop.database import Database
from freeloop.database.migrations import migrate
from freeloop.tasks.schema import TASKS, TASKS_SCHEMA
from freeloop.testing.own_server import OwnServer

STARTS = "create table starts (n int primary key, task uuid not null)"
COUNTS = """
select (select count(*) from starts) as started,
    (select count(*) from freeloop.tasks where state in ('queued', 'running')) as open
"""


# What must not be, and what finds it.
QUESTIONS = {
    "a committed start has no task": """
        select n from starts left join freeloop.tasks on id = task where id is null
    """,
    "a task has no committed start": """
        select id from freeloop.tasks left join starts on task = id where n is null
    """,
    "a task has not succeeded": "select id, state, error from freeloop.tasks where state <> 'succeeded'",
    "a row is there twice": "select n from effects group by n having count(*) > 1",
    "a row is missing": "select n from starts except select n from effects",
    "a row has no start": "select n from effects except select n from starts",
    "a job is left": "select id from freeloop.pgqueuer",
}


@dataclass
class Chaos:
    """One run.

    Attributes:
        kills: How often each kind was killed.
        deaths: When each worker process was killed, by its id, in seconds since the epoch.
    """

    server: OwnServer
    processes: WorkerProcesses
    total: int
    dice: random.Random
    kills: collections.Counter = field(default_factory=collections.Counter)
    deaths: dict = field(default_factory=dict)

    def run(self, within):
        """Kill until all tasks have been started, then let all come to their end."""
        until = time.monotonic() + within
        workers = [self.processes.worker() for _ in range(3)]
        starter = self._start_starter()
        for worker in workers:
            working(worker)
        while (counts := self._count())["started"] < self.total or counts["open"]:
            assert time.monotonic() < until, f"{counts} after {within} s; killed: {dict(self.kills)}"
            time.sleep(self.dice.uniform(0.5, 3))
            if starter.process.poll() is not None and counts["started"] < self.total:
                starter = self._start_starter()
            for place, worker in enumerate(workers):
                if worker.process.poll() is not None:
                    self.deaths.setdefault(worker.process.pid, time.time())
                    workers[place] = self.processes.worker()
            if counts["started"] < self.total:
                self._kill_one(workers, starter)

    def _kill_one(self, workers, starter):
        kind = self.dice.choices(["worker", "starter", "postgresql", "stop", "nobody"], [8, 2, 1, 2, 1])[0]
        self.kills[kind] += 1
        match kind:
            case "worker":
                worker = self.dice.choice(workers)
                worker.process.kill()
                worker.process.wait(10)
                self.deaths[worker.process.pid] = time.time()
            case "stop":
                self.dice.choice(workers).process.send_signal(signal.SIGTERM)
            case "starter":
                starter.process.kill()
            case "postgresql":
                self.server.kill()

    def _start_starter(self):
        return self.processes.script("tasks_starter.py", self.total)

    def _count(self):
        while True:
            try:
                return asyncio.run(self._ask(COUNTS))[0]
            except Exception as error:  # noqa: BLE001 - it is down, or comes back
                sys.stderr.write(f"no answer: {error}\n")
                time.sleep(0.2)

    async def _ask(self, sql):
        async with connected(self.server.address) as connection:
            return await connection.fetch(sql)

    def find_faults(self, traces):
        """Return what must not be: one line each."""
        return [
            *(fault for question in QUESTIONS.items() for fault in self._find(*question)),
            *find_overlaps(traces, self.deaths),
        ]

    def _find(self, what, sql):
        return [f"{what}: {tuple(row)}" for row in asyncio.run(self._ask(sql))]


def find_overlaps(traces, deaths):
    """Return where an execution began while another one of the same task was alive."""
    spans = collections.defaultdict(list)
    for file in traces.iterdir():
        pid = int(file.name)
        open_ = {}
        for line in file.read_text().splitlines():
            task, attempt, kind, at = line.split()
            if kind == "begin":
                open_[task, attempt] = float(at)
            else:
                spans[task].append((open_.pop((task, attempt)), float(at), pid))
        for (task, _), began in open_.items():
            spans[task].append((began, deaths.get(pid, float("inf")), pid))
    faults = []
    for task, found in spans.items():
        found.sort()
        for (_, ended, first), (began, _, second) in itertools.pairwise(found):
            if began < ended:
                faults.append(
                    f"task {task} ran twice at once, in {first} and {second}, for {ended - began} s"
                )
    return faults


def prepare(address):
    async def make():
        await migrate(address, TASKS, schema=TASKS_SCHEMA)
        async with Database(address, name="chaos") as database:
            await database.execute(f"{TABLES}; {STARTS}")

    asyncio.run(make())


def run(total, seed, within):
    """Run once; return the kills and the faults."""
    with OwnServer() as server, tempfile.TemporaryDirectory() as folder:
        prepare(server.address)
        settings = {
            "FREELOOP_WORKER_HEARTBEAT_TIMEOUT": 1.5,
            "FREELOOP_SHUTDOWN_TIMEOUT": 3,
            "TEST_TRACES": folder,
        }
        with WorkerProcesses(server.address, **settings) as processes:
            chaos = Chaos(server, processes, total, random.Random(seed))  # noqa: S311 - chance, no secret
            chaos.run(within)
        return chaos.kills, chaos.find_faults(Path(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--within", type=float, default=86_400)
    given = parser.parse_args()
    began = time.monotonic()
    kills, faults = run(given.tasks, given.seed, given.within)
    took = time.monotonic() - began
    sys.stdout.write(f"{given.tasks} tasks in {took:.0f} s; killed: {dict(kills)}\n")
    sys.stdout.write("\n".join(faults or ["no fault"]) + "\n")
    sys.exit(bool(faults))
