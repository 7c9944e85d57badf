"""Workers of tasks_app in processes of their own, and the database that they share."""

import os
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import asyncpg
from tasks_app import kit

from freeloop.database import Database
from freeloop.database.migrations import migrate
from freeloop.tasks.pgqueuer_engine import PgQueuerEngine
from freeloop.tasks.schema import TASKS, TASKS_SCHEMA
from run_process import Processes

TABLES = """
create table runs (
    id bigint generated always as identity primary key, task uuid, pid int, mark text,
    began timestamptz default clock_timestamp(), ended timestamptz
);
create table effects (n int, task uuid)
"""


def url_of(address):
    host = quote(str(address.host), safe="")
    return f"postgresql://{address.user}@/{address.database}?host={host}&port={address.port}"


class WorkerProcesses(Processes):
    """Starts workers on one database."""

    def __init__(self, address, **settings):
        super().__init__()
        self._environment = {
            "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{Path(__file__).parent}",
            "FREELOOP_DATABASE_URL": url_of(address),
            "FREELOOP_DATABASE_POOL_SIZE": 5,
            "FREELOOP_REPLICAS": 4,
            "FREELOOP_LOG_FORMAT": "json",
            **settings,
        }

    def worker(self, *arguments, **environment):
        return self._start(
            "freeloop",
            "worker",
            "tasks_app:app",
            *arguments,
            cwd=Path(__file__).parent,
            environment={**self._environment, **environment},
        )

    def script(self, *arguments):
        return self._start(*arguments, cwd=Path(__file__).parent, environment=self._environment, module=False)

    def command(self, *arguments):
        return self._start("freeloop", *arguments, cwd=os.curdir, environment=self._environment)


@asynccontextmanager
async def connected(address):
    connection = await asyncpg.connect(**address.arguments(), timeout=5)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


def working(process):
    """Wait until a worker takes tasks."""
    return process.wait_for(lambda record: record.get("event") == "working")


@asynccontextmanager
async def opened(address):
    """Give the app's tasks, to be started from here, on a database with the tables that they write to."""
    await migrate(address, TASKS, schema=TASKS_SCHEMA)
    async with Database(address, name="starter") as database:
        if await database.fetch_value("select to_regclass('runs') is null"):
            await database.execute(TABLES)
        async with kit.tasks.open(database, PgQueuerEngine()):
            yield kit.tasks
