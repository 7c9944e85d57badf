"""Migrations: exactly once, unchanged, in their order, or not at all."""

import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from freeloop.database.migrations import MigrationPlan, migrate, plan
from freeloop.errors import DatabaseUnavailable, MigrationError


def text(sql, *, depends="", head=""):
    top = f"-- what it does\n-- depends: {depends}\n{head}\n"
    return f"{top}-- migrate: apply\n\n{sql}\n\n-- migrate: rollback\n"


FIRST = text("CREATE TABLE numbers (n int);")
SECOND = text("INSERT INTO numbers VALUES (1);\nINSERT INTO numbers VALUES (2);", depends="0001-numbers")


@pytest.fixture
async def empty(postgres):
    """The address of an empty database."""
    async with connected(postgres) as admin:
        await admin.execute("CREATE DATABASE empty")
        try:
            yield replace(postgres, database="empty")
        finally:
            await admin.execute("DROP DATABASE empty WITH (FORCE)")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "0001-numbers.sql").write_text(FIRST)
    (tmp_path / "0002-rows.sql").write_text(SECOND)
    return tmp_path


@asynccontextmanager
async def connected(address):
    connection = await asyncpg.connect(**address.arguments())
    try:
        yield connection
    finally:
        await connection.close()


async def value(address, sql):
    async with connected(address) as connection:
        return await connection.fetchval(sql)


def write(path, content):
    """In a thread, since the tests run under the detector of blocking calls."""
    return asyncio.to_thread(path.write_text, content)


async def test_pending_files_are_applied_in_their_order_and_once(empty, folder):
    both = ("0001-numbers", "0002-rows")
    assert await plan(empty, folder) == MigrationPlan(applied=(), pending=both)
    assert await value(empty, "SELECT to_regclass('public.freeloop_migration')") is None
    assert await migrate(empty, folder) == both
    assert await migrate(empty, folder) == ()
    assert await plan(empty, folder) == MigrationPlan(applied=both, pending=())
    assert await value(empty, "SELECT array_agg(n ORDER BY n) FROM numbers") == [1, 2]


async def test_a_new_file_is_applied_on_top(empty, folder):
    await migrate(empty, folder)
    await write(folder / "0003-more.sql", text("INSERT INTO numbers VALUES (3);", depends="0002-rows"))
    assert (await plan(empty, folder)).pending == ("0003-more",)
    assert await migrate(empty, folder) == ("0003-more",)
    assert await value(empty, "SELECT max(n) FROM numbers") == 3


async def test_pogo_itself_sees_them_as_applied(empty, folder):
    await migrate(empty, folder)
    ids = await value(empty, "SELECT array_agg(migration_id ORDER BY migration_id) FROM _pogo_migration")
    assert ids == ["0001-numbers", "0002-rows"]


async def test_a_function_body_is_one_statement(empty, folder):
    body = (
        "CREATE FUNCTION twice(n int) RETURNS int LANGUAGE plpgsql AS $body$\n"
        "BEGIN\n    IF n > 0 THEN\n        RETURN 2 * n;\n    END IF;\n    RETURN 0;\nEND\n$body$;\n"
        "INSERT INTO numbers VALUES (twice(21));"
    )
    await write(folder / "0003-twice.sql", text(body, depends="0002-rows"))
    await migrate(empty, folder)
    assert await value(empty, "SELECT max(n) FROM numbers") == 42


async def test_ten_that_start_at_once_apply_each_exactly_once(empty, folder):
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        tasks = [group.create_task(migrate(empty, folder)) for _ in range(10)]
    applied = [task.result() for task in tasks if task.result()]
    assert applied == [("0001-numbers", "0002-rows")]
    assert await value(empty, "SELECT count(*) FROM numbers") == 2


async def test_ten_processes_that_start_at_once_apply_each_exactly_once(empty, folder):
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from freeloop.database import Address\n"
        "from freeloop.database.migrations import migrate\n"
        "sys.stdin.readline()\n"
        "address = Address(**eval(sys.argv[1]))\n"
        "print(*asyncio.run(migrate(address, Path(sys.argv[2]))))\n"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            repr(empty.arguments()),
            str(folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(10)
    ]
    async with asyncio.timeout(90):
        ends = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    assert [process.returncode for process in processes] == [0] * 10, ends
    assert sorted(out.strip() for out, _ in ends) == [b""] * 9 + [b"0001-numbers 0002-rows"]
    assert await value(empty, "SELECT count(*) FROM numbers") == 2


async def test_an_applied_file_that_was_changed_is_refused(empty, folder):
    await migrate(empty, folder)
    before = await value(empty, "SELECT checksum FROM freeloop_migration WHERE id = '0002-rows'")
    await write(folder / "0002-rows.sql", SECOND.replace("(2)", "(7)"))
    for refused in (plan, migrate):
        with pytest.raises(MigrationError) as caught:
            await refused(empty, folder)
        message = str(caught.value)
        assert "0002-rows.sql was changed after it had been applied" in message
        assert f"its checksum was {before[:12]} and is " in message
        assert "new migration" in message
    assert await value(empty, "SELECT max(n) FROM numbers") == 2


async def test_an_applied_file_that_is_missing_is_refused(empty, folder):
    await migrate(empty, folder)
    await asyncio.to_thread((folder / "0002-rows.sql").unlink)
    for refused in (plan, migrate):
        with pytest.raises(MigrationError, match=r"0002-rows\.sql was applied .* not in the folder. Restore"):
            await refused(empty, folder)


async def test_a_failed_file_names_itself_and_the_mistake_and_leaves_nothing(empty, folder):
    mistake = "INSERT INTO numbers VALUES (3);\nCREATE TABLE other (n int);\nINSERT INTO nowhere VALUES (1);"
    await write(folder / "0003-wrong.sql", text(mistake, depends="0002-rows"))
    with pytest.raises(MigrationError, match=r'0003-wrong\.sql failed: relation "nowhere" does not exist'):
        await migrate(empty, folder)
    assert await value(empty, "SELECT max(n) FROM numbers") == 2
    assert await value(empty, "SELECT to_regclass('public.other')") is None
    assert (await plan(empty, folder)).pending == ("0003-wrong",)
    await write(folder / "0003-wrong.sql", text("INSERT INTO numbers VALUES (3);", depends="0002-rows"))
    assert await migrate(empty, folder) == ("0003-wrong",)


async def test_a_file_without_transaction_runs_while_another_process_waits(empty, folder):
    index = "CREATE INDEX CONCURRENTLY numbers_n ON numbers (n);"
    content = text(index, depends="0002-rows", head="-- transaction: false")
    await write(folder / "0003-index.sql", content)
    # A waiter with a snapshot would stop the index from being finished: each would wait for the other.
    async with asyncio.timeout(30):
        first, second = await asyncio.gather(migrate(empty, folder), migrate(empty, folder))
    assert sorted([len(first), len(second)]) == [0, 3]


async def test_waiting_for_another_process_is_bounded(empty, folder):
    from freeloop.database.migrations import _LOCK

    async with connected(empty) as other:
        await other.execute("SELECT pg_advisory_lock($1)", _LOCK)
        with pytest.raises(MigrationError, match=r"another process .* more than 0\.3 s"):
            await migrate(empty, folder, timeout=0.3)
    assert len(await migrate(empty, folder)) == 2


async def test_waiting_for_a_table_is_bounded(empty, folder):
    await migrate(empty, folder)
    await write(folder / "0003-more.sql", text("ALTER TABLE numbers ADD m int;", depends="0002-rows"))
    async with connected(empty) as other, other.transaction():
        await other.execute("LOCK TABLE numbers")
        with pytest.raises(
            MigrationError, match=r"0003-more\.sql failed: canceling statement due to lock timeout"
        ):
            await migrate(empty, folder, timeout=0.5)


@pytest.mark.parametrize(
    "name", ["3-x.sql", "0003_x.sql", "0003-X.sql", "0003-.sql", "0003-x.py", "notes.sql"]
)
async def test_a_wrong_file_name_is_refused(empty, folder, name):
    await write(folder / name, text("SELECT 1;", depends="0002-rows"))
    with pytest.raises(MigrationError, match=f"{name} must be named NNNN-name.sql"):
        await migrate(empty, folder)


async def test_two_files_with_one_number_are_refused(empty, folder):
    await write(folder / "0002-zebra.sql", text("SELECT 1;", depends="0002-rows"))
    with pytest.raises(MigrationError, match=r"0002-rows\.sql and 0002-zebra\.sql have the same number"):
        await migrate(empty, folder)


@pytest.mark.parametrize("depends", ["", "0001-numbers", "0001-numbers 0002-rows", "0009-nowhere"])
async def test_a_file_that_does_not_depend_on_the_one_before_is_refused(empty, folder, depends):
    await write(folder / "0003-more.sql", text("SELECT 1;", depends=depends))
    with pytest.raises(MigrationError, match=r"0003-more\.sql .*write '-- depends: 0002-rows' on its second"):
        await migrate(empty, folder)
    assert await value(empty, "SELECT to_regclass('public.numbers')") is None


async def test_a_malformed_file_is_refused(empty, folder):
    await write(folder / "0003-more.sql", "CREATE TABLE other (n int);")
    with pytest.raises(
        MigrationError, match=r"0003-more\.sql cannot be read: .*No '-- migrate: apply' found"
    ):
        await migrate(empty, folder)


async def test_other_files_in_the_folder_do_not_matter(empty, folder):
    await write(folder / "__init__.py", "")
    await write(folder / "README.md", "")
    assert len(await migrate(empty, folder)) == 2


async def test_two_folders_with_the_same_names_do_not_meet(empty, folder):
    other = folder / "other"
    await asyncio.to_thread(other.mkdir)
    await write(other / "0001-numbers.sql", text("CREATE TABLE numbers (n text);"))
    assert (await plan(empty, other)).pending == ("0001-numbers",)
    await migrate(empty, folder)
    with pytest.raises(MigrationError, match=r"0001-numbers\.sql was changed"):
        await plan(empty, other)


async def test_a_missing_folder_is_refused(empty, tmp_path):
    with pytest.raises(MigrationError, match="does not exist"):
        await migrate(empty, tmp_path / "nowhere")


async def test_an_unreachable_server_is_a_database_unavailable(empty, folder, free_tcp_port):
    with pytest.raises(DatabaseUnavailable, match=r"not reached within 0\.3 s"):
        await migrate(replace(empty, host="127.0.0.1", port=free_tcp_port), folder, timeout=0.3)
