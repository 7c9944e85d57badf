"""What our migration makes is what the installed pgqueuer expects; what a new version changes shows here."""

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.qb import (
    QueryBuilderEnvironment,
    QueryQueueBuilder,
    QuerySchedulerBuilder,
)
from pgqueuer.adapters.persistence.queries import Queries

from freeloop.tasks.pgqueuer_engine import NAMES


async def test_the_schema_needs_no_upgrade(tasks, address):
    connection = await asyncpg.connect(**address.arguments())
    try:
        plan = await Queries(
            AsyncpgDriver(connection),
            qbe=QueryBuilderEnvironment(NAMES),
            qbq=QueryQueueBuilder(NAMES),
            qbs=QuerySchedulerBuilder(NAMES),
        ).plan_upgrade()
    finally:
        await connection.close()
    assert list(plan.statements) == []


async def test_no_name_of_the_schema_comes_from_the_environment(monkeypatch):
    for name in type(NAMES).model_fields:
        monkeypatch.setenv(f"PGQUEUER_{name.upper()}", "other")
    assert type(NAMES)(**NAMES.model_dump()) == NAMES
    assert NAMES.model_fields_set >= type(NAMES).model_fields.keys()


async def test_neither_its_log_nor_its_trigger_writes(tasks):
    await tasks.database.execute(
        "insert into freeloop.pgqueuer_log (job_id, status, priority, entrypoint) "
        "values (1, 'queued', 0, 'x')"
    )
    assert await tasks.database.fetch_value("select count(*) from freeloop.pgqueuer_log") == 0
    enabled = await tasks.database.fetch_value(
        "select tgenabled from pg_trigger where tgname = 'tg_pgqueuer_changed'"
    )
    assert enabled == b"D"
