"""The service as its users see it."""

import asyncio
import json
import signal
import time

import aiohttp
import pytest

from serving import EARLY


async def get(client, path, **options):
    async with client.get(path, **options) as answer:
        return answer.status, await answer.json()


async def test_async_task_waits_without_blocking_anybody(client):
    began = time.perf_counter()
    waiting = asyncio.create_task(get(client, "/async-task"))
    quick = [await get(client, "/livez") for _ in range(20)]
    quick_took = time.perf_counter() - began
    assert await waiting == (200, {"message": "Task Complete"})
    assert time.perf_counter() - began >= 2 - EARLY
    assert quick == [(200, {"status": "ok"})] * 20
    assert quick_took < 1.5


async def test_sync_task_answers_as_in_the_chapter(client):
    assert await get(client, "/sync-task?seconds=0.01") == (200, {"message": "Sync Operation Complete"})


@pytest.mark.parametrize("seconds", ["-0.1", "60.1", "nan", "inf", "x"])
@pytest.mark.parametrize("path", ["/async-task", "/sync-task"])
async def test_seconds_out_of_bounds_are_refused(client, path, seconds):
    status, problem = await get(client, f"{path}?seconds={seconds}")
    assert status == 422
    assert problem["title"].startswith("query.seconds: ")


async def test_forty_blocking_calls_slow_no_async_one(client):
    async def timed():
        began = time.perf_counter()
        assert (await get(client, "/async-task?seconds=0.2"))[0] == 200
        return time.perf_counter() - began

    alone = sorted([await timed() for _ in range(5)])[2]
    sleeping = [asyncio.create_task(get(client, "/sync-task?seconds=3")) for _ in range(40)]
    await wait_for_metric(client, 'freeloop_threads_in_use{pool="run_sync"} 40.0')
    beside = sorted([await timed() for _ in range(5)])[2]
    for task in sleeping:
        task.cancel()
    await asyncio.gather(*sleeping, return_exceptions=True)
    assert beside < alone + 0.05
    await wait_for_metric(client, 'freeloop_threads_in_use{pool="run_sync"} 0.0')


async def wait_for_metric(client, line):
    async with asyncio.timeout(20):
        while True:
            async with client.get("/metrics") as answer:
                if line in (await answer.text()).splitlines():
                    return
            await asyncio.sleep(0.01)


async def test_fetch_data_brings_the_sample_posts(client):
    status, answer = await get(client, "/fetch-data")
    assert status == 200
    assert list(answer) == ["data"]
    assert len(answer["data"]) == 100


async def test_fetch_data_brings_several_sources_under_their_names(client):
    status, answer = await get(client, "/fetch-data?source=posts&source=users")
    assert status == 200
    assert [len(answer["data"]["posts"]), len(answer["data"]["users"])] == [100, 10]


async def test_an_item_lives_from_post_to_delete(client):
    async with client.post("/items", json={"name": "Lamp", "price": "12.5", "tags": ["light"]}) as answer:
        created = await answer.json()
        assert answer.status == 201
        location, etag = answer.headers["Location"], answer.headers["ETag"]
    assert created["price"] == "12.50"
    assert await get(client, location) == (200, created)
    async with client.patch(location, json={"price": "9.99"}, headers={"If-Match": etag}) as answer:
        assert (answer.status, (await answer.json())["price"]) == (200, "9.99")
    async with client.patch(location, json={"price": "1.00"}, headers={"If-Match": etag}) as answer:
        assert answer.status == 412
    async with client.delete(location) as answer:
        assert answer.status == 204
    assert (await get(client, location))[0] == 404


async def test_changes_are_streamed_and_resumed(client):
    async with client.get("/items/changes") as stream:
        assert stream.content_type == "text/event-stream"
        await anext(events(stream))
        async with client.post("/items", json={"name": "Streamed", "price": "1.00"}) as answer:
            item = await answer.json()
        event = await event_about(stream, item["id"])
        assert event["event"] == "insert"
        assert event["data"]["item"]["name"] == "Streamed"
    async with client.delete(f"/items/{item['id']}") as answer:
        assert answer.status == 204
    async with client.get("/items/changes", headers={"Last-Event-ID": event["id"]}) as stream:
        assert (await event_about(stream, item["id"]))["event"] == "delete"


async def events(stream):
    fields = {}
    async with asyncio.timeout(20):
        async for raw in stream.content:
            line = raw.decode().rstrip("\n")
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif not line and fields:
                yield fields
                fields = {}


async def event_about(stream, item_id):
    async for event in events(stream):
        if event.get("event") in {"insert", "update", "delete"}:
            data = json.loads(event["data"])
            if data["id"] == item_id:
                return {**event, "data": data}
    raise AssertionError("the stream ended before the event came")


async def test_probes_metrics_and_docs(client):
    assert await get(client, "/livez") == (200, {"status": "ok"})
    assert await get(client, "/readyz") == (200, {"status": "ok"})
    async with client.get("/metrics") as answer:
        assert answer.status == 200
        assert 'freeloop_requests_total{method="GET",route="/livez",status="200"}' in await answer.text()
    async with client.get("/") as answer:
        assert (answer.status, answer.url.path) == (200, "/docs")


async def test_every_request_is_one_access_record(client, service):
    await get(client, "/livez?secret=1", headers={"X-Request-ID": "acceptance-1"})
    record = await asyncio.to_thread(
        service.wait_for, lambda record: record.get("request_id") == "acceptance-1", timeout=10
    )
    assert (record["event"], record["path"], record["status"]) == ("request", "/livez", 200)
    assert record["duration_ms"] > 0
    assert "secret" not in json.dumps(record)


async def test_with_a_token_writes_and_internals_need_it(start):
    service = await asyncio.to_thread(start, FREELOOP_TOKEN="a-token-of-20-letters")  # noqa: S106 - a test secret
    url = await asyncio.to_thread(lambda: service.url)
    async with aiohttp.ClientSession(url) as client:
        item = {"name": "x", "price": "1.00"}
        for method, path in [
            ("POST", "/items"),
            ("PATCH", "/items/1"),
            ("DELETE", "/items/1"),
            ("GET", "/metrics"),
        ]:
            async with client.request(method, path, json=item if method != "GET" else None) as answer:
                assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="freeloop"')
            wrong = {"Authorization": "Bearer a-token-of-20-lettert"}
            async with client.request(method, path, headers=wrong) as answer:
                assert answer.status == 401
        right = {"Authorization": "Bearer a-token-of-20-letters"}
        async with client.post("/items", json=item, headers=right) as answer:
            assert answer.status == 201
        assert (await get(client, "/items?limit=1"))[0] == 200
    assert await asyncio.to_thread(service.stop) == 0
    assert "a-token-of-20-letters" not in "".join(service.lines)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
async def test_it_stops_with_exit_code_0_also_with_a_stream_open(start, sig):
    service = await asyncio.to_thread(start)
    url = await asyncio.to_thread(lambda: service.url)
    async with aiohttp.ClientSession(url) as client, client.get("/items/changes") as stream:
        await anext(events(stream))
        began = time.monotonic()
        assert await asyncio.to_thread(service.stop, sig) == 0
        assert time.monotonic() - began < 5


def test_the_second_start_keeps_the_rows(start):
    first = start()
    item = asyncio.run(create(first.url))
    assert first.stop() == 0
    second = start()
    assert asyncio.run(read(second.url, item["id"])) == item
    assert second.stop() == 0


async def create(url):
    async with (
        aiohttp.ClientSession(url) as client,
        client.post("/items", json={"name": "Kept", "price": "1.00"}) as answer,
    ):
        return await answer.json()


async def read(url, item_id):
    async with aiohttp.ClientSession(url) as client:
        return (await get(client, f"/items/{item_id}"))[1]


def test_wrong_settings_stop_the_start_with_a_line_each(start):
    service = start("--log-format", "xml", FREELOOP_THREADS="0")
    assert service.wait() == 1
    assert service.lines == [
        "freeloop: FREELOOP_THREADS='0' (from environment): expected 1 to 1000\n",
        "freeloop: FREELOOP_LOG_FORMAT='xml' (from flag): expected auto, json or console\n",
    ]


def test_a_database_that_is_not_there_is_one_error_after_the_timeout(start):
    service = start(FREELOOP_DATABASE_URL="postgresql://nobody@127.0.0.1:9/none", FREELOOP_START_TIMEOUT="1")
    assert service.wait() == 1
    (line,) = [line for line in service.lines if line.startswith("freeloop: ")]
    assert "127.0.0.1" in line
    assert not any("Traceback" in line for line in service.lines)


def test_a_port_in_use_is_one_error(start, service):
    port = service.url.rpartition(":")[2]
    second = start("--port", port)
    assert second.wait() == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in second.lines[0]
