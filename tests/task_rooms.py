"""Tasks on the test's own database, without an app around them."""

from contextlib import asynccontextmanager

import pytest

from freeloop.database import Database
from freeloop.database.migrations import migrate
from freeloop.tasks import RetryPolicy, Tasks
from freeloop.tasks.declare import Options, TaskDecorator
from freeloop.tasks.pgqueuer_engine import PgQueuerEngine
from freeloop.tasks.schema import TASKS, TASKS_SCHEMA
from freeloop.tasks.worker import Worker

TIMEOUT = 1.0  # seconds without a heartbeat


def declare(tasks, name=None, *, retries=0, backoff=0.01, no_retry=(), **options):
    """Return a decorator like kit.task()."""
    retry = RetryPolicy(retries=retries, base=backoff, never=no_retry)
    return TaskDecorator(tasks, name, Options(retry=retry, **options))


def worker(tasks, **options):
    return Worker(tasks, **{"heartbeat_timeout": TIMEOUT, "cleanup_timeout": 1.0, **options})


@asynccontextmanager
async def opened(address, tasks=None):
    """Give tasks that are open on a database that has their schema."""
    tasks = tasks or Tasks()
    await migrate(address, TASKS, schema=TASKS_SCHEMA)
    async with Database(address, name="tasks") as database, tasks.open(database, PgQueuerEngine()):
        yield tasks


@pytest.fixture
async def tasks(address):
    async with opened(address) as tasks:
        yield tasks
