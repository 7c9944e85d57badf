"""The bundled sample API: a real server with real rows."""

import asyncio

import pytest

from freeloop.errors import UpstreamUnreachable
from freeloop.outbound import AiohttpTransport, Client
from freeloop.service.sample import SampleApi


@pytest.fixture
async def client():
    async with Client(AiohttpTransport(), timeout=10.0) as client:
        yield client


async def test_it_serves_posts_and_users(client):
    async with SampleApi() as api:
        posts = (await client.get(api.sources["posts"])).json()
        users = (await client.get(api.sources["users"])).json()
        first = await client.get(api.sources["posts"] + "/1")
        last = (await client.get(api.sources["users"] + "/10")).json()
    assert list(api_keys(posts)) == ["userId", "id", "title", "body"]
    assert list(api_keys(users)) == ["id", "name", "username", "email"]
    assert [post["id"] for post in posts] == list(range(1, 101))
    assert [user["id"] for user in users] == list(range(1, 11))
    assert {post["userId"] for post in posts} == {user["id"] for user in users}
    assert len({post["title"] for post in posts}) == 100
    assert first.json() == posts[0]
    assert first.headers["Content-Type"] == "application/json"
    assert last == users[-1]


def api_keys(rows):
    (keys,) = {tuple(row) for row in rows}
    return keys


@pytest.mark.parametrize("path", ["/0", "/101", "/x", "/01"])
async def test_a_row_that_is_not_there(client, path):
    async with SampleApi() as api:
        response = await client.get(api.sources["posts"] + path)
    assert (response.status_code, response.json()) == (404, {"detail": "/posts has the ids 1 to 100"})


async def test_it_listens_on_loopback_only_while_it_runs(client):
    api = SampleApi()
    with pytest.raises(RuntimeError, match="no address before start"):
        _ = api.sources
    await api.start()
    url = api.sources["posts"]
    await api.start()
    assert api.sources["posts"] == url
    assert url.startswith("http://127.0.0.1:")
    assert (await client.get(url)).status_code == 200
    async with asyncio.timeout(5):
        await api.stop()
        await api.stop()
    with pytest.raises(UpstreamUnreachable):
        await client.get(url)
    with pytest.raises(RuntimeError, match="no address"):
        _ = api.sources


async def test_two_run_side_by_side(client):
    async with SampleApi() as one, SampleApi() as other:
        assert one.sources != other.sources
