"""The connections of an app against what a real PostgreSQL allows, before the app opens them."""

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest
from kit_app import settings_of

from freeloop.cli.doctor import check_budget_of
from freeloop.database import Address, Budget, check_budget
from freeloop.errors import StartError
from freeloop.testing.given_server import GivenServer
from streaming_replica import programs_or_skip

HUGE = 10_000


@pytest.fixture
async def role(address):
    """A role that is no superuser, and what it is called; dropped after the test."""
    name = f"app_{address.database}"
    async with connected(address) as connection:
        await connection.execute(f"create role {name} login")
        yield name
        await connection.execute(f"drop role {name}")


@asynccontextmanager
async def connected(address):
    connection = await asyncpg.connect(**address.arguments())
    try:
        yield connection
    finally:
        await connection.close()


async def read_limits(address):
    """Return ``max_connections``, and how many of them are kept for superusers."""
    async with connected(address) as connection:
        return [
            int(await connection.fetchval(f"show {name}"))
            for name in ("max_connections", "superuser_reserved_connections")
        ]


async def test_what_fits_exactly_may_start_and_one_more_may_not(address):
    most, kept = await read_limits(address)
    budget = Budget(most - kept - 1, listeners=1, reserve=0)
    await check_budget(address, budget)
    with pytest.raises(StartError, match=f"allows {most - kept} \\(max_connections {most} - {kept} reserved"):
        await check_budget(address, replace(budget, reserve=1))


async def test_the_doctor_makes_the_sum_of_the_start(address):
    most, kept = await read_limits(address)
    settings = settings_of(address, database_pool_size=most - kept - 1, database_reserve=0)
    assert await asyncio.to_thread(list, check_budget_of(settings, tasks=False)) == []
    [found] = await asyncio.to_thread(list, check_budget_of(settings, tasks=True))
    assert (found.check, found.place, found.severity) == ("budget", "FREELOOP_DATABASE_URL", "problem")
    assert "3 listeners" in found.says + found.remedy


async def test_the_limits_of_role_and_database_count_where_they_are_smaller(address, role):
    async with connected(address) as connection:
        await connection.execute(f"alter role {role} connection limit 20")
        budget = Budget(14)
        await check_budget(replace(address, user=role), budget)
        with pytest.raises(StartError, match=f"allows 20 \\(the CONNECTION LIMIT of the role {role}\\)"):
            await check_budget(replace(address, user=role), Budget(15))
        await connection.execute(f"alter database {address.database} connection limit 19")
        with pytest.raises(StartError, match=r"allows 19 .*\(ALTER DATABASE test_[0-9_]+ CONNECTION LIM"):
            await check_budget(replace(address, user=role), budget)
        await check_budget(address, budget)  # a superuser, for whom PostgreSQL heeds neither


async def test_behind_a_pooler_only_what_goes_past_it_is_counted(address):
    pooled = Address(host="192.0.2.1", pooler="transaction")  # nobody is asked there
    await check_budget(pooled, Budget(HUGE))
    pooled = replace(pooled, direct=address)
    await check_budget(pooled, Budget(HUGE))
    with pytest.raises(StartError, match="1 worker x 10000 replicas x 1 listener"):
        await check_budget(pooled, Budget(HUGE, replicas=HUGE))


async def test_two_addresses_of_one_server_share_a_sum(address, role):
    async with connected(address) as connection:
        await connection.execute(f"alter role {role} connection limit 30")
    ours = replace(address, user=role)
    budget = Budget(10)
    nobody = Address(host="127.0.0.1", port=1, database="shop")  # a replica that is down stops no start
    await check_budget(ours, budget, replicas=[nobody])
    await check_budget(ours, budget, replicas=[ours])
    async with connected(address) as connection:
        await connection.execute(f"alter role {role} connection limit 26")
    with pytest.raises(StartError, match=r"1 replica x \(2 x 10 pool \+ 2 listeners\) \+ 5 reserve = 27 "):
        await check_budget(ours, budget, replicas=[nobody, ours])


@pytest.fixture
def other():
    with GivenServer(programs_or_skip()) as server:
        yield server


async def test_a_replica_with_less_room_than_the_primary_refuses_the_start(address, other):
    async with connected(other.address) as connection:
        await connection.execute("create role app login password 'secret' connection limit 25")
    place = f"127.0.0.1:{other.port}/postgres"
    replica = Address(dsn=f"postgresql://app:secret@{place}")
    await check_budget(address, Budget(19, listeners=2), replicas=[replica])
    said = rf"1 listener\) \+ 5 reserve = 26 .* the replica at {place} allows 25 \(the CONNECTION LIMIT of"
    with pytest.raises(StartError, match=said):
        await check_budget(address, Budget(20, listeners=2), replicas=[replica])


APP = """
from fastapi import FastAPI
from freeloop import Freeloop

app = FastAPI()
kit = Freeloop(app, database=True)
"""


@pytest.fixture
def run(postgres, tmp_path):
    """Run a command of ours as one of ten replicas; return its exit code and what it said."""

    def run(*arguments):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FREELOOP_")}
        url = f"postgresql://{postgres.user}@/{postgres.database}?host={postgres.host}&port={postgres.port}"
        settings = {"FREELOOP_DATABASE_URL": url, "FREELOOP_REPLICAS": "10", "WEB_CONCURRENCY": "7"}
        done = subprocess.run(
            [sys.executable, "-m", "freeloop", *arguments, "--port", "0"],
            env={**clean, **settings},
            cwd=tmp_path,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout

    return run


def test_a_service_that_could_take_too_many_says_the_sum_and_does_not_start(run):
    code, said = run("serve")
    assert code == 1
    assert said.splitlines()[-1].startswith(
        "freeloop: Start refused: 1 worker x 10 replicas x (10 pool + 3 listeners) + 5 reserve = 135 "
        "connections, but PostgreSQL allows 97 (max_connections 100 - 3 reserved for superusers). Lower"
    )
    assert "Traceback" not in said


def test_an_app_that_could_take_too_many_does_not_start_either(run, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    code, said = run("run", "app.py", "--workers", "1")
    assert code == 1
    assert said.splitlines()[-1].startswith("freeloop: Start refused: 1 worker x 10 replicas x (10 pool")
    assert "Traceback" not in said


def test_each_worker_counts_all_of_them(run, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    code, said = run("run", "app.py", "--workers", "2")
    assert code == 1
    assert "Traceback" not in said
    assert "2 workers x 10 replicas x (10 pool + 1 listener) + 5 reserve = 225 connections, but" in said
