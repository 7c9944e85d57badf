"""A PostgreSQL that somebody else runs: its URL, passwords, TLS, several hosts; each mistake in one line.

On the oldest version that is supported, where its programs are there; see ``find_programs``.
"""

import asyncio
import socket
from pathlib import Path
from urllib.parse import quote

import pytest

import freeloop.service
from freeloop.database import Address, Database
from freeloop.database.embedded.binaries import find_binaries
from freeloop.database.migrations import migrate
from freeloop.errors import DatabaseUnavailable, SettingsError
from freeloop.testing.given_server import GivenServer
from tls_servers import serving_tls

MIGRATIONS = Path(freeloop.service.__file__).parent / "migrations"
PASSWORD = "p@ss/w:rd?#% é"  # noqa: S105 - made up
# Long enough for a slow machine, and much shorter than the time in which a failure would be tried again.
AT_ONCE = 10
TRIED_AGAIN = 60


@pytest.fixture(scope="module")
def server(authority):
    with serving_tls(authority, PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def without_tls():
    """The embedded one's programs, which are built without TLS."""
    with GivenServer(find_binaries(), password=PASSWORD) as server:
        yield server


@pytest.fixture
def free_port():
    """A port that stays free: it is bound, and nobody listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def ipv6_loopback(server):
    try:
        socket.create_connection(("::1", server.port), timeout=AT_ONCE).close()
    except OSError as error:
        pytest.skip(f"this system has no IPv6 loopback: {error}")
    return f"[::1]:{server.port}"


def url(server, parameters="", *, hosts="127.0.0.1:{port}", password=PASSWORD):
    hosts = hosts.format(port=server.port)
    return f"postgresql://postgres:{quote(password, safe='')}@{hosts}/postgres{parameters}"


async def ask(dsn, sql):
    database = Database(Address(dsn=dsn))
    try:
        await database.open(timeout=AT_ONCE)
        return await database.fetch_value(sql)
    finally:
        await database.close()


async def refusal(dsn):
    """Return the message of a start that fails at once, after what holds for all of them was checked."""
    async with asyncio.timeout(AT_ONCE):
        with pytest.raises(DatabaseUnavailable) as caught:
            await Database(Address(dsn=dsn)).open(timeout=TRIED_AGAIN)
    message = str(caught.value)
    assert "\n" not in message
    assert "FREELOOP_DATABASE_URL" in message
    assert_hidden(message)
    return message


def assert_hidden(text):
    assert PASSWORD not in text
    assert quote(PASSWORD, safe="") not in text
    assert "wrong-one" not in text


async def test_a_password_with_every_special_character_over_tcp(server):
    assert await ask(url(server, "?sslmode=disable"), "SELECT inet_server_addr()::text") == "127.0.0.1/32"
    stored = "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'postgres'"
    assert await ask(url(server, "?sslmode=disable"), stored)


async def test_the_version_is_one_that_is_supported_and_takes_the_migrations(server):
    assert await ask(url(server), "SELECT current_setting('server_version_num')::int") >= 140000
    await ask(url(server), "CREATE DATABASE migrated")
    address = Address(dsn=url(server), database="migrated")
    assert "0001-items" in await migrate(address, MIGRATIONS)
    assert await migrate(address, MIGRATIONS) == ()


@pytest.mark.parametrize("mode", ["", "?sslmode=prefer", "?sslmode=require"])
async def test_tls_without_a_root_certificate(server, mode):
    assert await ask(url(server, mode), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_tls_with_the_right_root_certificate(server, root, mode):
    dsn = url(server, f"?sslmode={mode}&sslrootcert={root}")
    version = await ask(dsn, "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    assert version in {"TLSv1.2", "TLSv1.3"}


async def test_notifications_over_tls(server, root):
    database = Database(Address(dsn=url(server, f"?sslmode=verify-full&sslrootcert={root}")))
    await database.open(timeout=AT_ONCE)
    try:
        async with asyncio.timeout(AT_ONCE), database.listen("news") as arriving:
            assert (await anext(arriving)).channel == ""
            await database.execute("NOTIFY news, 'hello'")
            assert (await anext(arriving)).payload == "hello"
    finally:
        await database.close()


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_wrong_root_certificate(server, other_root, mode):
    message = await refusal(url(server, f"?sslmode={mode}&sslrootcert={other_root}"))
    assert message.startswith(f"the certificate of PostgreSQL at 127.0.0.1:{server.port}/postgres was not")
    assert "sslrootcert" in message


async def test_a_certificate_for_another_host(server, root):
    parameters = f"?sslmode=verify-full&sslrootcert={root}"
    message = await refusal(url(server, parameters, hosts="localhost:{port}"))
    assert "mismatch" in message
    assert await ask(url(server, parameters.replace("full", "ca"), hosts="localhost:{port}"), "SELECT 1") == 1


async def test_a_server_without_tls(without_tls):
    message = await refusal(url(without_tls, "?sslmode=require"))
    assert "offers no TLS, which sslmode=require asks for" in message
    assert await ask(url(without_tls), "SELECT NOT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


@pytest.mark.parametrize("name", ["sslrootcert", "sslcert", "sslcrl"])
@pytest.mark.parametrize("state", ["missing", "garbage"])
async def test_a_file_that_cannot_be_used_is_named(server, root, tmp_path, name, state):
    path = tmp_path / "file.pem"
    if state == "garbage":
        await asyncio.to_thread(path.write_text, "no certificate")
    files = {"sslrootcert": root} | {name: path}
    parameters = "&".join(f"{key}={value}" for key, value in files.items())
    message = await refusal(url(server, f"?sslmode=verify-full&{parameters}"))
    assert message.startswith(f"the file of {name}, {path}, cannot be used")


async def test_the_root_certificate_is_not_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    message = await refusal(url(server, "?sslmode=verify-full"))
    assert "root certificate file" in message


async def test_a_wrong_password_and_none(server):
    for dsn in url(server, password="wrong-one"), url(server, password=""):  # noqa: S106 - made up
        message = await refusal(dsn)
        assert "refused the login for 'main': password authentication failed for user \"postgres\"" in message


async def test_a_parameter_that_the_server_does_not_know(server):
    message = await refusal(url(server, "?sslmod=require"))
    assert 'refused a parameter of the URL: unrecognized configuration parameter "sslmod"' in message


async def test_a_name_that_is_no_host_name(server):
    assert "cannot be used" in await refusal(url(server, hosts="a..b"))


async def test_a_parameter_that_the_server_knows(server):
    assert await ask(url(server, "?work_mem=1234kB"), "SELECT current_setting('work_mem')") == "1234kB"


async def test_ipv6(server, ipv6_loopback):
    for dsn in url(server, hosts=ipv6_loopback), url(server, f"?host=::1&port={server.port}", hosts=""):
        assert await ask(dsn, "SELECT inet_server_addr()::text") == "::1/128"
        assert Address(dsn=dsn).place == f"{ipv6_loopback}/postgres"


async def test_a_socket(server):
    folder = str(server.folder)
    for dsn in (
        f"postgresql://postgres@/postgres?host={folder}&port={server.port}",
        f"postgresql://postgres@{quote(folder, safe='')}:{server.port}/postgres",
        f"postgresql://postgres@elsewhere/?host={quote(folder, safe='')}&port={server.port}&dbname=postgres",
    ):
        assert await ask(dsn, "SELECT inet_server_addr() IS NULL")
        assert Address(dsn=dsn).place == f"{folder}:{server.port}/postgres"


async def test_the_second_host_where_the_first_refuses(server, free_port):
    hosts = f"127.0.0.1:{free_port},127.0.0.1:{{port}}"
    assert await ask(url(server, hosts=hosts), "SELECT inet_server_port()") == server.port


async def test_the_second_host_where_the_first_says_nothing(server):
    async def stay_silent(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(stay_silent, "127.0.0.1", 0) as silent:
        hosts = f"127.0.0.1:{silent.sockets[0].getsockname()[1]},127.0.0.1:{{port}}"
        assert await ask(url(server, hosts=hosts), "SELECT inet_server_port()") == server.port


async def test_a_kind_of_server(server, free_port):
    """The one server that answers is a primary."""
    hosts = f"127.0.0.1:{free_port},127.0.0.1:{{port}}"
    for wanted in "primary", "read-write", "prefer-standby":
        assert await ask(url(server, f"?target_session_attrs={wanted}", hosts=hosts), "SELECT 1") == 1
    with pytest.raises(DatabaseUnavailable, match="target_session_attrs=standby") as caught:
        await Database(Address(dsn=url(server, "?target_session_attrs=standby"))).open(timeout=0.5)
    assert_hidden(str(caught.value))


@pytest.mark.parametrize(
    ("dsn", "attempt"),
    [
        ("postgresql://h", {"host": "h"}),
        ("postgres://u@h:1/d", {"user": "u", "host": "h", "port": 1, "database": "d"}),
        ("postgresql://u:a%40b%3Ac:d@h/", {"user": "u", "password": "a@b:c:d", "host": "h"}),
        (" postgresql://h/%C3%A9\n", {"host": "h", "database": "é"}),
        ("postgresql://%2Frun%2Fpg:5433/", {"host": "/run/pg", "port": 5433}),
        ("postgresql://h:1/d?host=/run&port=2&user=u&password=%26&dbname=e", {
            "host": "/run", "port": 2, "user": "u", "password": "&", "database": "e",
        }),
        ("postgresql://h?sslmode=require&sslrootcert=/a%20b%26c", {
            "host": "h", "dsn": "postgresql://?sslmode=require&sslrootcert=%2Fa%20b%26c",
        }),
        ("postgresql://?port=2", {"port": 2}),
        ("postgresql://", {}),
    ],
)  # fmt: skip
def test_one_server_of_a_url(dsn, attempt):
    assert Address(dsn=dsn).attempts() == [attempt]


@pytest.mark.parametrize(
    ("dsn", "place"),
    [
        ("postgresql://a,b:2,[::1]:3,[fe80::1%25eth0]/d", "a:5432,b:2,[::1]:3,[fe80::1%eth0]:5432/d"),
        ("postgresql://a:1,b:1?port=7", "a:7,b:7"),
        ("postgresql://?host=a,/run/b,[::1]:9&port=1,2,3", "a:1,/run/b:2,[::1]:3"),
    ],
)
def test_several_servers_of_a_url(dsn, place):
    address = Address(dsn=dsn)
    assert address.place == place
    assert len(address.attempts()) == place.count(",") + 1


def test_fields_win_over_the_url():
    address = Address(dsn="postgresql://u:p@a,b/d?sslmode=require", host="c", user="v", database="e")
    assert address.place == "c:5432/e"
    assert address.attempts() == [
        {"dsn": "postgresql://?sslmode=require", "host": "c", "user": "v", "password": "p", "database": "e"}
    ]
    assert Address(dsn="postgresql://a:1,b:2", port=3).place == "a:3,b:3"


@pytest.mark.parametrize(
    ("dsn", "reason"),
    [
        ("mysql://u:hunter2@h/d", "must begin with postgresql://"),
        ("hunter2", "must begin with postgresql://"),
        ("postgresql://u:hunter@2@h/d", "@ is written %40"),
        ("postgresql://u:hunter/2@h/d", "/ %2F"),
        ("postgresql://u:hunter?2=3@h/d", "? %3F"),
        ("postgresql://u:12?hunter=2@h/d", "? %3F"),
        ("postgresql://u:hunter#2@h/d", "# %23"),
        ("postgresql://u:12#hunter2@h/d", "# %23"),
        ("postgresql://u:hunter%2@h/d", "itself is written %25"),
        ("postgresql://u:hunter 2@h/d", "space is written %20"),
        ("postgresql://u:hunter\n2@h/d", "control characters"),
        ("postgresql://u:hunter%002@h/d", "control characters"),
        ("postgresql://u:hunter2", "each host must be"),
        ("postgresql://u:hunter2@h:x/d", "each host must be"),
        ("postgresql://u:hunter2@h:0/d", "1 to 65535"),
        ("postgresql://u:hunter2@h:70000/d", "1 to 65535"),
        ("postgresql://u:hunter2@::1/d", "IPv6 address in brackets"),
        ("postgresql://u:hunter2@::1:5432/d", "IPv6 address in brackets"),
        ("postgresql://u:hunter2@[::1/d", "each host must be"),
        ("postgresql://u:hunter2@[::g]/d", "each host must be"),
        ("postgresql://u:hunter2@a,,b/d", "each host must be"),
        ("postgresql://u:hunter2@a,b/d?port=1,2,3", "one for all hosts or one for each"),
        ("postgresql://u:hunter2@a/d?port=0", "1 to 65535"),
        ("postgresql://u:hunter2@h/d?sslmode", "name=value"),
        ("postgresql://u:hunter2@h/d?sslmode=verify_full", "sslmode must be one of disable"),
        ("postgresql://u:hunter2@h/d?target_session_attrs=master", "must be one of any"),
        ("postgresql://u:hunter2@h/d?channel_binding=require", "channel_binding is not supported"),
    ],
)
def test_a_malformed_url_is_refused_without_showing_any_of_it(dsn, reason):
    with pytest.raises(SettingsError) as caught:
        Address(dsn=dsn)
    (line,) = caught.value.mistakes
    assert line.startswith("FREELOOP_DATABASE_URL: ")
    assert reason in line
    assert "\n" not in line
    assert "hunter" not in line
