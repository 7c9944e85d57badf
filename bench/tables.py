"""python -m bench tables: how the change log and the table of tasks behave as they grow.

Writes bench/results/tables.json, which docs/internet-scale.md shows. Both are filled by plain SQL: what is
measured is how long a page of them takes, their size, and what it costs to delete old tasks: one by one as
the service does, and as a partition, which it has not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from bench.machine import describe
from bench.postgresql import find_versions
from bench.servers import ROOT
from freeloop.database import Address, Database
from freeloop.database.migrations import migrate
from freeloop.service.app import MIGRATIONS
from freeloop.service.items.changelog import Cursor, read_log
from freeloop.tasks import store
from freeloop.tasks.ids import oldest_id
from freeloop.tasks.schema import TASKS, TASKS_SCHEMA
from freeloop.testing.own_server import OwnServer

STEPS = (10_000, 100_000, 1_000_000)
_BATCH = 1_000  # rows a transaction, so that stamps differ as they do in a service
_READS = 50
_DELETED = 10 * _BATCH  # tasks, in batches as retention deletes them
_DROPS = 3
_ITEMS = """
    insert into items (name, price, tags)
    select 'Spanner ' || n, 4.5 + n % 1000 * 0.25, array['tool'] from generate_series(1, $1) as n
"""
_TASKS = """
    insert into freeloop.tasks
        (id, name, queue, priority, state, job, arguments, attempt, result, started_at, finished_at)
    select
        (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0') || '7000' || '8000'
            || lpad(to_hex($2::bigint + n), 12, '0'))::uuid,
        'wait', 'default', 0, 'succeeded', $2::bigint + n, '{"seconds":2.0}', 1,
        '{"message":"Task Complete"}',
        now(), now()
    from generate_series(1, $1) as n
"""


# The unique key of the tasks cannot be one of the whole table: it would have to contain what the table is
# partitioned by. So it is left out there; the partition has the indexes that a task costs today.
_PARTITION = (
    "create table tasks_by_time (like freeloop.tasks) partition by range (id)",
    "create table old_tasks (like freeloop.tasks including all) with (fillfactor = 70)",
    "insert into old_tasks select * from freeloop.tasks",
    "alter table tasks_by_time attach partition old_tasks for values from (minvalue) to (maxvalue)",
)


async def measure(address: Address, steps: Sequence[int]) -> list[dict[str, Any]]:
    await migrate(address, MIGRATIONS)
    await migrate(address, TASKS, schema=TASKS_SCHEMA)
    grown = zip([0, *steps], steps, strict=False)
    async with Database(address, statement_timeout=None) as database:
        return [await _step(database, rows, before) for before, rows in grown]


async def _step(database: Database, rows: int, before: int) -> dict[str, Any]:
    for _ in range(before, rows, _BATCH):
        await database.execute(_ITEMS, _BATCH)
    await _write(database, before, rows)
    await database.execute("vacuum analyze")
    middle = await database.fetch_row(
        "select stamp::text::bigint, id from item_changes order by stamp, id offset $1 limit 1", rows // 2
    )
    assert middle is not None
    cursor = Cursor(*middle)
    found = {
        "rows": rows,
        "log_page_ms": await _time(lambda: read_log(database, cursor, limit=100)),
        "task_page_ms": await _time(lambda: store.list_page(database, limit=50)),
        "log_bytes": await _bytes(database, "item_changes", rows),
        "task_bytes": await _bytes(database, "freeloop.tasks", rows),
        "task_deleted_us": await _delete(database, min(rows, _DELETED)),
        "partition_dropped_ms": await _drop(database),
    }
    print(found, file=sys.stderr, flush=True)
    return found


async def _write(database: Database, first: int, last: int) -> None:
    for number in range(first, last, _BATCH):
        await database.execute(_TASKS, _BATCH, number)


async def _delete(database: Database, count: int) -> float:
    """Delete the oldest tasks as retention does, and write as many new ones; return the µs of a deletion."""
    started = time.perf_counter()
    for _ in range(0, count, _BATCH):
        async with database.transaction() as transaction:
            deleted = await store.prune(transaction, oldest_id(time.time()), 0.0, limit=_BATCH)
            assert deleted == _BATCH, f"expected to delete {_BATCH} tasks, deleted {deleted}"
    taken = time.perf_counter() - started
    await _write(database, 0, count)
    return taken / count * 1e6


async def _drop(database: Database) -> float:
    """Drop all tasks as one partition of a table by time, indexes included; return the ms that it takes."""
    times = []
    for _ in range(_DROPS):
        for statement in _PARTITION:
            await database.execute(statement)
        started = time.perf_counter()
        await database.execute("drop table old_tasks")
        times.append(time.perf_counter() - started)
        await database.execute("drop table tasks_by_time")
    return statistics.median(times) * 1000


async def _time(read: Callable[[], Awaitable[object]]) -> float:
    times = []
    for _ in range(_READS):
        started = time.perf_counter()
        await read()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


async def _bytes(database: Database, table: str, rows: int) -> float:
    size: int = await database.fetch_value("select pg_total_relation_size($1::text::regclass)", table)
    return size / rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench tables", description=__doc__)
    parser.add_argument("--short", action="store_true", help="small tables; changes no file")
    short = parser.parse_args().short
    with OwnServer() as server:
        steps = asyncio.run(measure(server.address, (1_000, 2_000) if short else STEPS))
    if not short:
        result = {
            "machine": describe(),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "versions": find_versions(),
            "steps": steps,
        }
        (ROOT / "bench" / "results" / "tables.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
