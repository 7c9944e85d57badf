"""The deadline of a request: 504 before the first byte, a cut after it, clean-up in bounded time."""

import asyncio
import contextlib
import logging
import threading
import time
from typing import Annotated

import aiohttp
import anyio
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse

from freeloop import current_scope, deadline
from freeloop.database import Database
from freeloop.errors import PoolTimeout
from freeloop.gate.reaper import TICK
from freeloop.outbound import AiohttpTransport, Client, Response
from freeloop.testing import eventually
from serving import EARLY, Ending, Metronome, forever, gated, kitted, served, soon

LATE = 0.1


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


async def fetch(session, path, **options):
    async with session.get(path, **options) as answer:
        return answer.status, await answer.read(), answer


async def test_504_comes_within_a_tenth_of_a_second_of_the_deadline():
    app, ending, records = FastAPI(), Ending(), []
    gated(app, records=records, deadline_header="X-Deadline")

    @app.get("/items/{number}")
    async def hang(number: int):
        async with ending:
            await forever()

    async with served(app) as (session, _):
        # Of several lengths, so that no rhythm of the looks suits them all.
        for round_, seconds in enumerate((0.11, 0.16, 0.21, 0.26, 0.31)):
            async with Metronome() as metronome:
                began = time.monotonic()
                async with session.get("/items/1", headers={"X-Deadline": str(seconds)}) as answer:
                    took = time.monotonic() - began
                    problem = await answer.json()
            await eventually(lambda: len(records) > round_)  # noqa: B023 - awaited here
            assert answer.status == 504
            assert answer.content_type == "application/problem+json"
            assert problem["title"] == "The request took longer than it may"
            assert problem["detail"] == f"/items/{{number}} was cancelled after {seconds} s, its deadline."
            assert problem["request_id"] == answer.headers["X-Request-ID"] == records[-1].request_id
            assert seconds - EARLY <= took < seconds + LATE + metronome.late
            assert ending.error is asyncio.CancelledError
            assert (records[-1].status, records[-1].cause) == (504, "deadline")


async def test_504_does_not_wait_for_a_long_clean_up():
    app, ending, release = FastAPI(), Ending(), asyncio.Event()
    gated(app, deadline=0.1)

    @app.get("/")
    async def hang():
        try:
            await forever()
        finally:
            await release.wait()
            async with ending:
                pass

    async with served(app) as (session, _), Metronome() as metronome:
        began = time.monotonic()
        status, _, answer = await fetch(session, "/")
        took = time.monotonic() - began
        assert (status, answer.content_type) == (504, "application/problem+json")
        assert took < 0.1 + LATE + metronome.late
        assert not ending.begun.is_set()
        release.set()
        await soon(ending.over.wait())


async def test_a_stream_with_a_declared_deadline_is_cut_at_it():
    app, ending, records = FastAPI(), Ending(), []
    gated(app, records=records)

    @app.get("/")
    @deadline(0.3)
    async def stream():
        async def body():
            async with ending:
                while True:
                    yield b"part"
                    await asyncio.sleep(0.02)

        return StreamingResponse(body())

    async with served(app) as (session, _), Metronome() as metronome:
        began = time.monotonic()
        async with session.get("/") as answer:
            assert answer.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
            assert 0.3 - EARLY <= time.monotonic() - began < 0.3 + LATE + metronome.late
        await soon(ending.over.wait())
        await eventually(lambda: records)
        assert (records[0].status, records[0].cause) == (200, "deadline")


async def test_the_apps_deadline_is_renewed_by_each_part_and_cuts_a_stream_that_hangs():
    app, ending, records = FastAPI(), Ending(), []
    gated(app, records=records, deadline=0.25)

    @app.get("/")
    async def stream(hang: bool):
        async def body():
            async with ending:
                for _ in range(8):
                    yield b"part"
                    await asyncio.sleep(0.1)
                if hang:
                    await forever()

        return StreamingResponse(body())

    async with served(app) as (session, _):
        status, body, _ = await fetch(session, "/?hang=0")
        await eventually(lambda: len(records) == 1)
        assert (status, body, records[0].cause) == (200, b"part" * 8, "")
        began = time.monotonic()
        async with Metronome() as metronome, session.get("/?hang=1") as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        assert 0.94 <= time.monotonic() - began < 0.95 + LATE + 9 * metronome.late
        await soon(ending.over.wait())
        await eventually(lambda: len(records) == 2)
        assert records[1].cause == "deadline"


async def test_server_sent_events_have_no_deadline_of_the_app_but_their_own():
    app, records = FastAPI(), []
    gated(app, records=records, deadline=0.15)

    async def events():
        yield b"data: 1\n\n"
        await asyncio.sleep(0.5)
        yield b"data: 2\n\n"

    @app.get("/app")
    async def of_the_app():
        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/own")
    @deadline(0.15)
    async def own():
        return StreamingResponse(events(), media_type="text/event-stream")

    async with served(app) as (session, _):
        assert (await fetch(session, "/app"))[1] == b"data: 1\n\ndata: 2\n\n"
        with pytest.raises(aiohttp.ClientPayloadError):
            await fetch(session, "/own")
        await eventually(lambda: len(records) == 2)
        assert [record.cause for record in records] == ["", "deadline"]


async def test_routes_and_dependencies_name_their_own_deadline():
    app, seen = FastAPI(), {}
    gated(app, deadline=0.15)

    async def longer():
        current_scope().set_deadline(0.6)

    def shorter():  # in a thread
        current_scope().set_deadline(0.1)

    @app.get("/none")
    @deadline(None)
    async def none():
        seen["none"] = current_scope().remaining()
        await asyncio.sleep(0.4)

    @app.get("/half")
    @deadline(0.5)
    async def half():
        seen["half"] = current_scope().remaining()
        await forever()

    @app.get("/longer")
    async def with_longer(_: Annotated[None, Depends(longer)]):
        await asyncio.sleep(0.3)

    @app.get("/shorter")
    async def with_shorter(_: Annotated[None, Depends(shorter)]):
        await forever()

    @app.get("/lifted")
    async def lifted():
        current_scope().set_deadline(None)
        await asyncio.sleep(0.4)

    async with served(app) as (session, _):

        async def status(path):
            began = time.monotonic()
            return (await fetch(session, path))[0], time.monotonic() - began

        assert (await status("/none"))[0] == 200
        assert seen["none"] is None
        code, took = await status("/half")
        assert code == 504
        assert took > 0.49
        assert 0.4 < seen["half"] <= 0.5
        assert (await status("/longer"))[0] == 200
        code, took = await status("/shorter")
        assert code == 504
        assert took > 0.09
        assert (await status("/lifted"))[0] == 200


async def test_a_deadline_is_over_zero():
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="seconds over 0"):
            deadline(wrong)


@pytest.fixture
def header_app():
    app = FastAPI()

    @app.get("/")
    async def show():
        return current_scope().remaining()

    @app.get("/none")
    @deadline(None)
    async def none():
        return current_scope().remaining()

    @app.get("/short")
    @deadline(1)
    async def short():
        return current_scope().remaining()

    return app


async def test_a_deadline_header_counts_only_where_it_is_trusted(header_app):
    gated(header_app, deadline=20)
    async with served(header_app) as (session, _):
        for value in ("2", "nonsense"):
            status, body, _ = await fetch(session, "/", headers={"X-Deadline": value})
            assert status == 200
            assert float(body) > 19


async def test_a_trusted_header_may_shorten_and_never_lengthen(header_app):
    gated(header_app, deadline=20, deadline_header="X-Deadline")
    async with served(header_app) as (session, _):
        for path, header, least, most in (
            ("/", "2.5", 2, 2.5),
            ("/", "90", 19, 20),
            ("/short", "90", 0.5, 1),
            ("/none", "3", 2.5, 3),
        ):
            _, body, _ = await fetch(session, path, headers={"x-deadline": header})
            assert least < float(body) <= most
        assert (await fetch(session, "/none"))[1] == b"null"


@pytest.mark.parametrize("value", ["", "x", "0", "-1", "nan", "inf", "1 s", "\xe4", "9" * 400])
async def test_a_trusted_header_with_nonsense_is_refused(header_app, value):
    gated(header_app, deadline_header="X-Deadline")
    async with served(header_app) as (session, _), session.get("/", headers={"X-Deadline": value}) as answer:
        assert answer.status == 400
        assert answer.content_type == "application/problem+json"
        assert (await answer.json())["title"] == "The header X-Deadline is no number of seconds"


async def test_the_remaining_time_reaches_the_database(address):
    app, errors = FastAPI(), []
    gated(app, deadline=0.22)
    database = Database(address, size=1, acquire_timeout=20)
    await database.open()

    @app.get("/")
    async def query():
        await asyncio.sleep(0.1)
        began = time.monotonic()
        try:
            await database.fetch_value("SELECT 1")
        except (PoolTimeout, asyncio.CancelledError) as error:
            errors.append((error, time.monotonic() - began))
            raise

    try:
        async with database.transaction(), served(app) as (session, _):
            # The wait ends with the deadline; the next look at the request may still come before it.
            for _ in range(10):
                async with Metronome() as metronome:
                    await fetch(session, "/")
                error, waited = errors[-1]
                assert waited < 0.12 + LATE + metronome.late
                if isinstance(error, PoolTimeout):
                    assert "within 0.1" in error.detail
                    break
            else:
                pytest.fail("the wait for a connection never ended by itself")
    finally:
        await database.close()


async def test_the_remaining_time_is_the_timeout_of_an_outbound_call():
    app, timeouts = FastAPI(), []
    gated(app, deadline=5)

    class Recorder:
        async def send(self, request):
            timeouts.append(request.timeout)
            return Response(request=request, status_code=204, headers={}, content=b"", url=request.url)

        async def close(self):
            pass

    client = Client(Recorder(), timeout=60)

    @app.get("/")
    async def call():
        await asyncio.sleep(0.1)
        timeouts.append(current_scope().remaining())
        await client.get("http://upstream.test/")
        timeouts.append(current_scope().remaining())
        current_scope().set_deadline(None)
        await client.get("http://upstream.test/")

    async with served(app) as (session, _):
        assert (await fetch(session, "/"))[0] == 200
    before, timeout, after, without = timeouts
    assert after <= timeout <= before < 4.91
    assert without == 60


async def test_a_real_call_ends_with_the_deadline_and_its_connection_with_it():
    upstream, app = FastAPI(), FastAPI()
    ending = Ending()
    gated(upstream)
    gated(app, deadline=0.2)

    @upstream.get("/")
    async def hang():
        async with ending:
            await forever()

    client = Client(AiohttpTransport())
    try:
        async with served(upstream) as (at, _), served(app) as (session, _):
            url = str(at._base_url)

            @app.get("/")
            async def call():
                await client.get(url)

            assert (await fetch(session, "/"))[0] == 504
            await soon(ending.over.wait())
    finally:
        await client.close()


async def test_clean_up_runs_with_its_awaits_and_in_order():
    app, steps, done = FastAPI(), [], asyncio.Event()
    gated(app)

    async def outer():
        try:
            yield
        finally:
            await asyncio.sleep(0.02)
            steps.append("dependency")
            done.set()

    def threaded():
        try:
            yield
        finally:
            time.sleep(0.001)
            steps.append("thread")

    @app.get("/")
    async def hang(_: Annotated[None, Depends(outer)], __: Annotated[None, Depends(threaded)]):
        try:
            current_scope().set_deadline(0.1)  # from here: what comes before may take long
            await forever()
        finally:
            await asyncio.sleep(0.02)
            await asyncio.sleep(0.02)
            steps.append("handler")

    async with served(app) as (session, _):
        assert (await fetch(session, "/"))[0] == 504
        await soon(done.wait())
    assert steps == ["handler", "thread", "dependency"]


@pytest.mark.parametrize("stacked", [1, 3])
async def test_clean_up_runs_with_its_awaits_behind_http_middleware(stacked):
    app, steps, done = FastAPI(), [], asyncio.Event()
    gated(app, deadline=0.1)
    for _ in range(stacked):

        @app.middleware("http")
        async def layer(request: Request, call_next):
            return await call_next(request)

    async def outer():
        try:
            yield
        finally:
            await asyncio.sleep(0.02)
            steps.append("dependency")
            done.set()

    @app.get("/")
    async def hang(_: Annotated[None, Depends(outer)]):
        try:
            await forever()
        finally:
            await asyncio.sleep(0.02)
            await asyncio.sleep(0.02)
            steps.append("handler")

    async with served(app) as (session, _):
        assert (await fetch(session, "/"))[0] == 504
        await soon(done.wait())
    assert steps == ["handler", "dependency"]


async def test_clean_up_of_a_stream_runs_with_its_awaits():
    app, steps, done = FastAPI(), [], asyncio.Event()
    gated(app)

    @app.get("/")
    @deadline(0.1)
    async def stream():
        async def body():
            try:
                yield b"part"
                await forever()
            finally:
                await asyncio.sleep(0.02)
                steps.append("stream")
                done.set()

        return StreamingResponse(body())

    async with served(app) as (session, _):
        with pytest.raises(aiohttp.ClientPayloadError):
            await fetch(session, "/")
        await soon(done.wait())
    assert steps == ["stream"]


async def test_clean_up_that_hangs_is_cancelled_again_and_its_stack_is_logged(caplog):
    app, records = FastAPI(), []
    gate = gated(app, records=records, deadline=0.1, cleanup_timeout=0.2)
    first, second = Ending(), Ending()

    @app.get("/slow-clean-up")
    async def stubborn():
        try:
            async with first:
                await forever()
        finally:
            async with second:
                await forever()

    async with served(app) as (session, _):
        assert (await fetch(session, "/slow-clean-up"))[0] == 504
        await soon(second.over.wait())
        assert 0.19 <= second.at - first.at < 0.2 + TICK + LATE
        assert second.error is asyncio.CancelledError
        await eventually(lambda: gate.running == 0)
    (warning,) = [record for record in caplog.records if "does not end" in record.message]
    assert (warning.levelno, warning.name) == (logging.WARNING, "freeloop.gate")
    assert (warning.route, warning.cause) == ("/slow-clean-up", "deadline")
    assert warning.request_id == records[0].request_id
    assert "in stubborn" in warning.stack
    assert "test_deadline.py" in warning.stack


async def test_a_child_task_that_hangs_in_its_clean_up_is_cancelled_again(caplog):
    app = FastAPI()
    gate = gated(app, cleanup_timeout=0.1)
    ending, begun = Ending(), asyncio.Event()

    async def stubborn_child():
        try:
            begun.set()
            await forever()
        finally:
            async with ending:
                await forever()

    @app.get("/")
    async def answer():
        current_scope().start_soon(stubborn_child)
        await begun.wait()

    async with served(app) as (session, _):
        assert (await fetch(session, "/"))[0] == 200
        await soon(ending.over.wait())
        assert ending.error is asyncio.CancelledError
        await eventually(lambda: gate.running == 0)
    assert any("stubborn_child" in record.stack for record in caplog.records if hasattr(record, "stack"))


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_handler_that_swallows_the_cancellation_has_no_say_any_more(goes_on):
    app, records = FastAPI(), []
    gate = gated(app, records=records, deadline=0.1, cleanup_timeout=0.1)
    finished = asyncio.Event()

    @app.get("/")
    async def swallow():
        for _ in range(3 if goes_on else 1):
            with contextlib.suppress(asyncio.CancelledError):
                await forever()
        finished.set()
        return "too late"

    async with served(app) as (session, _):
        status, body, _ = await fetch(session, "/")
        assert status == 504
        assert b"too late" not in body
        await soon(finished.wait())
        await eventually(lambda: gate.running == 0)
        assert (records[0].status, records[0].cause) == (504, "deadline")
        # The connection is still good for another.
        assert (await fetch(session, "/"))[0] == 504


async def test_an_error_out_of_the_clean_up_changes_no_answer():
    app = FastAPI()
    gated(app, deadline=0.1)

    @app.get("/")
    async def fail():
        try:
            await forever()
        finally:
            raise RuntimeError("clean-up failed")

    async with served(app) as (session, _):
        assert (await fetch(session, "/"))[0] == 504


async def test_an_app_that_times_out_by_itself_is_no_deadline():
    app, records = FastAPI(), []
    gated(app, records=records)

    @app.get("/asyncio")
    async def own():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await forever()
        return "mine"

    @app.get("/anyio")
    async def other():
        with anyio.move_on_after(0.01):
            await forever()
        return "mine"

    async with served(app) as (session, _):
        assert (await fetch(session, "/asyncio"))[1] == b'"mine"'
        assert (await fetch(session, "/anyio"))[1] == b'"mine"'
        await eventually(lambda: len(records) == 2)
    assert [record.cause for record in records] == ["", ""]


async def test_what_runs_after_the_answer_is_not_cut():
    app, records = FastAPI(), []
    gated(app, records=records, deadline=0.1)
    ending = Ending()

    async def later():
        async with ending:
            await asyncio.sleep(0.3)

    @app.get("/")
    async def answer(tasks: BackgroundTasks):
        tasks.add_task(later)
        return "done"

    async with served(app) as (session, _):
        assert (await fetch(session, "/"))[0] == 200
        await soon(ending.over.wait())
        assert ending.error is None
        await eventually(lambda: records)
        assert (records[0].status, records[0].cause) == (200, "")


async def test_a_def_route_is_answered_at_its_deadline_while_its_thread_goes_on():
    app, release, ended = FastAPI(), threading.Event(), asyncio.Event()
    kit = kitted(app, deadline=0.2)
    loop = asyncio.get_running_loop()

    @app.get("/")
    def block():
        release.wait(10)
        loop.call_soon_threadsafe(ended.set)

    async with served(app, lifespan="on") as (session, _), Metronome() as metronome:
        began = time.monotonic()
        status, _, _ = await fetch(session, "/")
        took = time.monotonic() - began
        assert status == 504
        assert took < 0.2 + LATE + metronome.late
        assert kit._resources.threads.get().routes.in_use == 1
        release.set()
        await soon(ended.wait())
        await eventually(lambda: kit._resources.threads.get().routes.in_use == 0)


async def test_the_sweep_runs_in_nobodys_context():
    """A timer keeps the variables of whoever starts it: of the first request, for as long as others come."""
    app, hold, seen = FastAPI(), asyncio.Event(), []
    gate = gated(app)
    sweep = gate._reaper._sweep

    def look():
        seen.append(current_scope())
        sweep()

    gate._reaper._sweep = look

    @app.get("/")
    async def held():
        await hold.wait()

    async with served(app) as (session, _):
        running = asyncio.create_task(fetch(session, "/"))
        await eventually(lambda: len(seen) >= 2)
        hold.set()
        await running
    assert set(seen) == {None}


@pytest.mark.parametrize(("cause", "status"), [("deadline", 504), ("shutdown", 503)])
async def test_a_request_that_the_app_cancels_is_answered_too(cause, status):
    app, ending, records = FastAPI(), Ending(), []
    gated(app, records=records)

    @app.get("/")
    async def give_up():
        async with ending:
            current_scope().cancel(cause)
            await forever()

    async with served(app) as (session, _):
        answered, _, answer = await fetch(session, "/")
        assert (answered, answer.content_type) == (status, "application/problem+json")
        await eventually(lambda: records)
    assert (records[0].cause, records[0].status) == (cause, status)
