"""The routes under /tasks, on an app with a kit; and a worker in the app's own process."""

import asyncio
import json
import time

import pytest
from kit_app import kit_app, running

from freeloop.errors import TaskFailed
from freeloop.tasks import current_execution, progress
from freeloop.testing import eventually

TOKEN = "a-token-for-tests"  # noqa: S105 - nobody else's secret
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
WITHIN = 10.0


def tasks_app(address, **settings):
    """Return an app with tasks, and what they wait for."""
    app, kit = kit_app(address, settings={"token": TOKEN, "worker_heartbeat_timeout": 1, **settings})
    may_end = asyncio.Event()

    @kit.task(retries=0)
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @kit.task(retries=0)
    async def fail() -> None:
        raise ValueError("broken")

    @kit.task(retries=0)
    async def work() -> str:
        progress(1, 2, "half")
        await may_end.wait()
        progress(2, 2, "all")
        return current_execution().id

    app.include_router(kit.task_router())
    return app, kit, may_end


async def start(client, name, body=None, **headers):
    async with client.post(f"/tasks/{name}", json=body or {}, headers={**AUTHORIZED, **headers}) as answer:
        assert answer.status == 202, await answer.text()
        return answer.headers["Location"], await answer.json()


async def ended(client, place):
    async def find():
        async with client.get(place) as answer:
            found = await answer.json()
            return found if found["state"] in {"succeeded", "failed", "cancelled"} else None

    await eventually(find, within=WITHIN)
    return await find()


async def test_a_task_is_started_and_read(address):
    app, _, _ = tasks_app(address)
    async with running(app) as client:
        place, started = await start(client, "add", {"a": 2}, **{"X-Request-ID": "the-request"})
        assert place == f"/tasks/{started['id']}"
        assert started["name"] == "add"
        found = await ended(client, place)
        assert (found["state"], found["result"], found["request_id"]) == ("succeeded", 3, "the-request")


@pytest.mark.parametrize(
    ("name", "body", "status", "detail"),
    [
        ("add", b'{"a": "x"}', 422, "a: input should be a valid integer"),
        ("add", b"", 422, "a: field required"),
        ("add", b"{", 422, "invalid JSON"),
        ("add", b'{"a": 1, "c": 2}', 422, "c: extra inputs are not permitted"),
        ("none", b"{}", 404, "The declared ones are: add, fail, work."),
    ],
)
async def test_what_cannot_be_started_says_why(address, name, body, status, detail):
    app, _, _ = tasks_app(address)
    async with running(app) as client, client.post(f"/tasks/{name}", data=body, headers=AUTHORIZED) as answer:
        assert answer.status == status
        assert detail in (await answer.json())["detail"]


async def test_writes_and_the_list_need_the_token(address):
    app, kit, _ = tasks_app(address)
    async with running(app) as client:
        id_ = (await kit.tasks.start(kit.tasks.find("add"), 1)).id
        for method, path in [
            ("POST", "/tasks/add"),
            ("GET", "/tasks"),
            ("POST", f"/tasks/{id_}/cancel"),
            ("POST", f"/tasks/{id_}/retry"),
        ]:
            async with client.request(method, path, json={"a": 1}) as answer:
                assert answer.status == 401, path


async def test_a_task_that_blocks_the_loop_is_blamed_by_its_name(address):
    app, kit, _ = tasks_app(address, watch_threshold=0.1)

    @kit.task(retries=0)
    async def block() -> None:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            sum(range(1000))

    async with running(app) as client:
        place, _ = await start(client, "block", **{"X-Request-ID": "the-request"})
        await ended(client, place)
        await eventually(lambda: [each for each in kit.watch.findings() if each.route == "block"])
        (found,) = [each for each in kit.watch.findings() if each.route == "block"]
        assert (found.file, found.request_id) == (__file__, "the-request")


async def test_an_idempotency_key_starts_one_task(address):
    app, _, _ = tasks_app(address)
    async with running(app) as client:
        key = {"Idempotency-Key": "order-7"}
        place, _ = await start(client, "add", {"a": 1}, **key)
        await ended(client, place)
        async with client.post("/tasks/add", json={"a": 1}, headers={**AUTHORIZED, **key}) as answer:
            assert answer.headers["Idempotency-Replayed"] == "true"
            assert answer.headers["Location"] == place
        async with client.post("/tasks/add", json={"a": 2}, headers={**AUTHORIZED, **key}) as answer:
            assert answer.status == 422


async def test_a_failed_task_hides_its_traceback_and_can_be_retried(address):
    app, _, _ = tasks_app(address)
    async with running(app) as client:
        place, _ = await start(client, "fail")
        found = await ended(client, place)
        assert found["error"] == {"type": "ValueError", "message": "broken"}
        async with client.post(f"{place}/retry", headers=AUTHORIZED) as answer:
            assert answer.status == 200
        found = await ended(client, place)
        assert found["attempt"] == 2
        place, _ = await start(client, "add", {"a": 1})
        await ended(client, place)
        for action in ("cancel", "retry"):
            async with client.post(f"{place}/{action}", headers=AUTHORIZED) as answer:
                assert answer.status == 409
                assert "its state is 'succeeded'" in (await answer.json())["detail"]


async def read_events(answer):
    """Yield the stream's events, name, id and data."""
    event = {}
    async for line in answer.content:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field:
            event[field] = value
        elif "data" in event:
            yield event["event"], int(event["id"]), json.loads(event["data"])
            event = {}


async def test_events_tell_of_progress_and_end_with_the_task(address):
    app, _, may_end = tasks_app(address)
    async with running(app) as client:
        place, _ = await start(client, "work")
        async with client.get(f"{place}/events") as answer:
            seen = []
            async for event in read_events(answer):
                seen.append(event)
                if event[2]["progress"] == {"done": 1.0, "total": 2.0, "note": "half"}:
                    may_end.set()
        names, revisions, data = zip(*seen, strict=True)
        assert names[-1] == "succeeded"
        assert list(revisions) == sorted(set(revisions))
        assert data[-1]["progress"]["note"] == "all"
        async with client.get(f"{place}/events", headers={"Last-Event-ID": str(revisions[-2])}) as answer:
            assert [event async for event in read_events(answer)] == [seen[-1]]
        async with client.get("/tasks/00000000-0000-7000-8000-000000000000/events") as answer:
            assert answer.status == 404


async def test_a_running_task_is_cancelled(address):
    app, _, _ = tasks_app(address)
    async with running(app) as client:
        place, _ = await start(client, "work")
        await eventually(lambda: state_is(client, place, "running"))
        async with client.post(f"{place}/cancel", headers=AUTHORIZED) as answer:
            assert answer.status == 200
        assert (await ended(client, place))["state"] == "cancelled"


async def state_is(client, place, state):
    async with client.get(place) as answer:
        return (await answer.json())["state"] == state


async def test_the_list_goes_by_pages(address):
    app, _, _ = tasks_app(address, worker="none")
    async with running(app) as client:
        places = [(await start(client, "add", {"a": n}))[0] for n in range(3)]
        seen, before = [], {}
        while True:
            async with client.get("/tasks", params={"limit": 2, **before}, headers=AUTHORIZED) as answer:
                page = await answer.json()
            seen += [f"/tasks/{each['id']}" for each in page["tasks"]]
            if page["next"] is None:
                break
            before = {"before": page["next"]}
        assert seen == places[::-1]
        for state, count in [("queued", 3), ("failed", 0)]:
            async with client.get("/tasks", params={"state": state}, headers=AUTHORIZED) as answer:
                assert len((await answer.json())["tasks"]) == count


async def test_an_app_without_a_worker_only_starts(address):
    app, kit, _ = tasks_app(address, worker="none")
    async with running(app) as client:
        await start(client, "add", {"a": 1})
        assert await kit.database.fetch_value("select count(*) from freeloop.workers") == 0


async def test_the_end_of_the_app_hands_back_what_runs(address):
    app, _, _ = tasks_app(address, shutdown_timeout=0.5)
    async with running(app) as client:
        place, _ = await start(client, "work")
        await eventually(lambda: state_is(client, place, "running"))
    async with running(tasks_app(address, worker="none")[0]) as client, client.get(place) as answer:
        found = await answer.json()
        assert (found["state"], found["attempt"], found["losses"]) == ("queued", 1, 0)


async def test_tasks_need_a_database(address):
    _, kit = kit_app(address, database=False)
    with pytest.raises(RuntimeError, match=r"write Freeloop\(app, database=True\)"):
        kit.task()


async def test_an_app_without_tasks_has_no_schema_of_them(address):
    app, kit = kit_app(address)
    async with running(app):
        assert await kit.database.fetch_value("select to_regnamespace('freeloop')") is None


async def test_a_task_is_started_with_the_business_write(address):
    app, kit, _ = tasks_app(address)
    async with running(app):
        async with kit.database.transaction() as transaction:
            handle = await kit.tasks.start(kit.tasks.find("fail"), in_=transaction)
        with pytest.raises(TaskFailed, match="ValueError: broken"):
            await handle.result(timeout=WITHIN)
