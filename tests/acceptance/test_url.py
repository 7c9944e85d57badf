"""The service on a PostgreSQL that somebody else runs, named by a URL."""

import asyncio
import urllib.parse

import aiohttp
import pytest

from tls_servers import serving_tls

PASSWORD = "p@ss/w:rd?#%"  # noqa: S105 - made up


@pytest.fixture(scope="module")
def server(authority):
    with serving_tls(authority, PASSWORD) as server:
        yield server


def url_of(server, root, password=PASSWORD):
    login = f"postgres:{urllib.parse.quote(password, safe='')}"
    return (
        f"postgresql://{login}@127.0.0.1:{server.port}/postgres?sslmode=verify-full&sslrootcert="
        + urllib.parse.quote(str(root))
    )


async def use(service):
    """Create, read, list, change and delete one item, and see each of it in the stream of changes."""
    url = await asyncio.to_thread(lambda: service.url)
    async with asyncio.timeout(30), aiohttp.ClientSession(url) as client:
        async with client.get("/items/changes") as stream:
            async with client.post("/items", json={"name": "Elsewhere", "price": "1.00"}) as answer:
                assert answer.status == 201
                path, item = answer.headers["Location"], await answer.json()
            async with client.get("/items", params={"limit": 200}) as answer:
                assert item in (await answer.json())["items"]
            async with client.get(path) as answer:
                assert await answer.json() == item
                tag = answer.headers["ETag"]
            async with client.patch(path, json={"price": "2.00"}, headers={"If-Match": tag}) as answer:
                assert (await answer.json())["price"] == "2.00"
            async with client.patch(path, json={"price": "3.00"}, headers={"If-Match": tag}) as answer:
                assert answer.status == 412
            async with client.delete(path) as answer:
                assert answer.status == 204
            seen = []
            while len(seen) < 3:
                line = (await stream.content.readline()).decode()
                if line.startswith("event:"):
                    seen.append(line.removeprefix("event:").strip())
            assert seen == ["insert", "update", "delete"]
        async with client.get("/readyz") as answer:
            assert answer.status == 200
    assert await asyncio.to_thread(service.stop) == 0


async def test_the_service_runs_on_a_given_postgresql(start, address):
    host = urllib.parse.quote(address.host, safe="")
    url = f"postgresql://{address.user}@/{address.database}?host={host}&port={address.port}"
    await use(await asyncio.to_thread(start, FREELOOP_DATABASE_URL=url))


async def test_the_service_runs_over_tls_with_a_password(start, server, root):
    service = await asyncio.to_thread(start, FREELOOP_DATABASE_URL=url_of(server, root))
    await use(service)
    assert PASSWORD not in "".join(service.lines)
    assert urllib.parse.quote(PASSWORD, safe="") not in "".join(service.lines)


def assert_refused(service, *words):
    """The start fails at once, with one line that says all of the words and no password."""
    assert service.wait() == 1
    # Where the environment is new, run.py says first that it sets it up.
    lines = [line for line in service.lines if not line.startswith("run.py: ")]
    assert len(lines) == 1, lines
    (line,) = lines
    assert line.startswith("freeloop: ")
    for word in words:
        assert word in line
    assert "wrong-one" not in line
    assert urllib.parse.quote(PASSWORD, safe="") not in line


def test_a_certificate_of_another_authority_stops_the_start(start, server, other_root):
    service = start(FREELOOP_DATABASE_URL=url_of(server, other_root))
    place = f"127.0.0.1:{server.port}/postgres"
    assert_refused(service, f"certificate of PostgreSQL at {place} was not accepted", "sslrootcert")


def test_a_wrong_password_stops_the_start(start, server, root):
    service = start(FREELOOP_DATABASE_URL=url_of(server, root, "wrong-one"))
    assert_refused(service, 'password authentication failed for user "postgres"', "FREELOOP_DATABASE_URL")


@pytest.mark.parametrize(
    ("login", "word"),
    [("postgres:wrong-one/", "%2F"), ("postgres:wrong-one#", "%23"), ("wrong-one:x", "%3A")],
)
def test_a_url_that_would_be_misread_stops_the_start(start, login, word):
    assert_refused(start(FREELOOP_DATABASE_URL=f"postgresql://{login}@a@h/d"), word, "FREELOOP_DATABASE_URL")
