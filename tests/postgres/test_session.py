"""What a failed statement leaves on the server: nothing, before the connection is used again."""

import asyncpg
import pytest

from freeloop.database import Database
from freeloop.testing import eventually


@pytest.fixture
async def witness(address):
    """Another pool on the same database."""
    witness = Database(address, name="witness")
    await witness.open()
    yield witness
    await witness.close()


@pytest.mark.parametrize("argument", ["no number", 2**40])
async def test_arguments_that_cannot_be_sent_leave_no_lock_and_no_transaction(database, witness, argument):
    await database.execute("create table numbers (n int)")
    pid = await database.fetch_value("select pg_backend_pid()")
    with pytest.raises(asyncpg.DataError):
        await database.fetch("select * from numbers where n = $1", argument)
    state = "select state, xact_start from pg_stat_activity where pid = $1"
    assert tuple(await witness.fetch_row(state, pid)) == ("idle", None)
    async with witness.transaction() as transaction:
        await transaction.execute("lock table numbers in access exclusive mode nowait")
    assert await database.fetch_value("select pg_backend_pid()") == pid  # and the connection is the same


async def test_a_wrong_number_of_arguments_leaves_none_either(database, witness):
    pid = await database.fetch_value("select pg_backend_pid()")
    with pytest.raises(asyncpg.InterfaceError):
        await database.fetch("select $1::int")
    state = "select state from pg_stat_activity where pid = $1"

    async def is_idle():
        return await witness.fetch_value(state, pid) == "idle"

    await eventually(is_idle)
