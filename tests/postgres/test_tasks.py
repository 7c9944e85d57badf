"""Start, run, look, cancel, retry: durable tasks on a real database."""

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from pydantic import BaseModel

from freeloop import current_scope
from freeloop.errors import NotFound, TaskCancelled, TaskFailed, Unprocessable
from freeloop.scope import Scope, Trace
from freeloop.tasks import NoRetry, Retry, Tasks, complete, current_execution, progress, store
from freeloop.tasks.payload import LARGEST, PayloadRefused
from freeloop.tasks.retention import TaskRetention
from freeloop.tasks.signals import QUEUED
from freeloop.testing import eventually
from task_rooms import declare, opened, worker
from tree_looks import look

WITHIN = 10.0
TRACE = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "01", "")


class Post(BaseModel):
    title: str
    at: datetime


@pytest.fixture
def rows(tasks):
    async def count():
        return await tasks.database.fetch_value("select count(*) from freeloop.pgqueuer")

    return count


async def test_a_task_runs_with_its_arguments_and_gives_its_result(tasks, rows):
    @declare(tasks)
    async def shout(post: Post, times: int = 2) -> list[Post]:
        return [post.model_copy(update={"title": post.title.upper()})] * times

    post = Post(title="bread", at=datetime(2026, 1, 2, tzinfo=UTC))
    handle = await tasks.start(shout, post)
    assert await handle.state() == "queued"
    async with worker(tasks):
        result = await handle.result(timeout=WITHIN)
    assert result == [Post(title="BREAD", at=post.at)] * 2
    status = await handle.status()
    assert (status.state, status.attempt, status.failures, status.losses) == ("succeeded", 1, 0, 0)
    assert status.created_at <= status.started_at <= status.finished_at
    assert await rows() == 0


async def test_the_connection_of_a_start_is_borrowed_by_the_line_of_the_app(tasks):
    @declare(tasks)
    async def add(a: int, b: int) -> int:
        return a + b

    scope = Scope("the-request")

    async def route():
        scope.enter()
        await tasks.start(add, 1, 2)

    async with tasks.database.transaction() as other:
        await other.execute("lock table freeloop.tasks in exclusive mode")
        starting = asyncio.create_task(route())
        await eventually(lambda: scope.leases, within=WITHIN)
        (lease,) = scope.leases
    await starting
    line = route.__code__.co_firstlineno + 2
    assert lease.place == f"{__file__}:{line} in {route.__qualname__}"


async def test_a_declared_function_is_itself_when_called(tasks):
    @declare(tasks)
    async def add(a: int, b: int) -> int:
        return a + b

    assert await add(1, 2) == 3


async def test_a_plain_function_runs_in_a_thread_and_in_the_scope(tasks):
    @declare(tasks)
    def where() -> list:
        return [threading.current_thread() is threading.main_thread(), current_execution().attempt]

    async with worker(tasks):
        assert await (await tasks.start(where)).result(timeout=WITHIN) == [False, 1]


async def test_an_execution_is_a_scope_with_the_starters_request_id(tasks):
    @declare(tasks, timeout=30)
    async def look() -> list:
        scope = current_scope()
        return [scope.id, scope.kind, scope.route, 29 < scope.remaining() <= 30, scope.trace == TRACE]

    async def start():
        scope = Scope("request-7")
        scope.trace = TRACE
        scope.enter()
        return await tasks.start(look)

    handle = await asyncio.create_task(start())
    async with worker(tasks):
        assert await handle.result(timeout=WITHIN) == ["request-7", "task", "look", True, True]
    assert (await handle.status()).request_id == "request-7"


async def test_an_execution_is_in_the_tree_with_what_it_holds_and_books_its_time(tasks):
    async with worker(tasks) as taker:

        @declare(tasks)
        async def hold() -> None:
            async with tasks.database.transaction() as transaction:
                await transaction.fetch_value("select pg_sleep(60)")

        handle = await tasks.start(hold)
        await eventually(lambda: taker.running and taker.running[0].leases)
        seen = await look()
        (execution,) = taker.running
        (scope,) = [each for each in seen.snapshot.scopes if each.id == seen["task-hold"].scope]
        assert (scope.kind, scope.route, scope.request) == ("task", "hold", execution.id)
        assert len(scope.leases) == 1
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(timeout=WITHIN)
        assert execution.times()["sql"] > 0
        assert not execution.leases


async def test_a_start_in_a_transaction_exists_if_that_commits(tasks, rows):
    @declare(tasks)
    async def noop() -> None: ...

    undone = None

    async def start_in_vain():
        nonlocal undone
        async with tasks.database.transaction() as transaction:
            undone = await tasks.start(noop, in_=transaction)
            raise RuntimeError("undo")

    with pytest.raises(RuntimeError, match="undo"):
        await start_in_vain()
    async with tasks.database.transaction() as transaction:
        done = await tasks.start(noop, in_=transaction)
        with pytest.raises(NotFound):  # nobody else sees it yet
            await done.status()
    assert await done.state() == "queued"
    with pytest.raises(NotFound):
        await undone.state()
    assert await rows() == 1


async def test_a_start_by_itself_is_one_statement_without_a_transaction(tasks, rows, monkeypatch):
    @declare(tasks)
    async def noop() -> None: ...

    for times in (1, 2):
        counts = tasks.database.statement_times.counts
        before = sum(counts.values())
        with monkeypatch.context() as patch:
            patch.setattr(tasks.database, "transaction", None)
            await tasks.start_many([noop.bind()] * times)
        assert sum(counts.values()) - before == 1
    assert await rows() == 3


async def test_a_start_in_a_transaction_is_picked_up_by_a_signal_after_the_commit(tasks):
    ran = asyncio.Event()

    @declare(tasks)
    async def ring() -> None:
        ran.set()

    async with worker(tasks, heartbeat_timeout=300):
        await eventually(lambda: tasks.signals.heard)
        async with tasks.database.transaction() as transaction:
            await tasks.start(ring, in_=transaction)
        async with asyncio.timeout(WITHIN):  # by looking alone it would take 75 s
            await ran.wait()


async def test_a_worker_of_another_process_hears_of_a_start(tasks, address):
    ran = asyncio.Event()
    other = Tasks()
    for each in (tasks, other):

        @declare(each)
        async def ring() -> None:
            ran.set()

    async with opened(address, other), worker(other, heartbeat_timeout=300):
        await eventually(lambda: other.signals.heard)
        await tasks.start(ring)
        async with asyncio.timeout(WITHIN):
            await ran.wait()


async def test_a_key_makes_a_task_unique_also_after_its_end(tasks, rows):
    @declare(tasks)
    async def square(n: int) -> int:
        return n * n

    first = await tasks.start(square, 3, key="order-7")
    again = await tasks.start(square, 4, key="order-7")
    assert (first.created, again.created, again.id) == (True, False, first.id)
    assert again.arguments == '{"n":3}'
    assert await rows() == 1
    async with worker(tasks):
        assert await again.result(timeout=WITHIN) == 9
    late = await tasks.start(square, 5, key="order-7")
    assert (late.id, late.created, await late.result(timeout=1)) == (first.id, False, 9)
    assert await rows() == 0


async def test_two_starts_at_once_with_one_key_make_one_task(tasks, rows):
    @declare(tasks)
    async def noop() -> None: ...

    handles = await asyncio.gather(*(tasks.start(noop, key="one") for _ in range(8)))
    assert len({handle.id for handle in handles}) == 1
    assert sum(handle.created for handle in handles) == 1
    assert await rows() == 1


async def test_a_batch_is_started_whole_and_leaves_known_keys_alone(tasks, rows):
    @declare(tasks)
    async def double(n: int) -> int:
        return 2 * n

    known = await tasks.start(double, 0, key="0")
    handles = await tasks.start_many([double.bind(n).keyed(str(n)) for n in range(50)])
    assert handles[0].id == known.id
    assert [handle.created for handle in handles] == [False] + [True] * 49
    assert await rows() == 50
    async with worker(tasks):
        assert await asyncio.gather(*(h.result(timeout=WITHIN) for h in handles)) == [
            2 * n for n in range(50)
        ]


async def test_a_task_waits_for_its_time(tasks):
    @declare(tasks)
    async def when() -> float:
        return time.time()

    async with worker(tasks):
        began = time.time()
        after = await tasks.start(when, delay=0.5)
        at = await tasks.start(when, at=datetime.now(UTC) + timedelta(seconds=0.7))
        assert (await after.status()).due_at > datetime.now(UTC)
        assert 0.45 < await after.result(timeout=WITHIN) - began < 0.9
        assert 0.65 < await at.result(timeout=WITHIN) - began < 1.1


async def test_more_urgent_ones_are_taken_first(tasks):
    order = []

    @declare(tasks, priority=1)
    async def low() -> None:
        order.append("low")

    @declare(tasks, priority=2)
    async def high() -> None:
        order.append("high")

    handles = await tasks.start_many([low.bind(), low.bind(), high.bind(), high.bind()])
    async with worker(tasks, concurrency=1):
        await asyncio.gather(*(handle.result(timeout=WITHIN) for handle in handles))
    assert order == ["high", "high", "low", "low"]


async def test_a_failure_is_tried_again_and_the_last_one_is_kept(tasks, rows):
    @declare(tasks, retries=2)
    async def fail() -> None:
        raise ValueError(f"no {current_execution().attempt}")

    handle = await tasks.start(fail)
    async with worker(tasks):
        with pytest.raises(TaskFailed, match="after 3 executions: ValueError: no 3"):
            await handle.result(timeout=WITHIN)
    status = await handle.status()
    assert (status.state, status.attempt, status.failures) == ("failed", 3, 3)
    assert "raise ValueError" in status.error.traceback
    assert await rows() == 0


async def test_a_failure_can_be_mended_and_started_again(tasks):
    broken = True

    @declare(tasks)
    async def mend(n: int) -> int:
        if broken:
            raise ValueError("broken")
        return n

    handle = await tasks.start(mend, 7)
    async with worker(tasks):
        with pytest.raises(TaskFailed):
            await handle.result(timeout=WITHIN)
        assert [each.id for each in (await tasks.list(state="failed")).tasks] == [handle.id]
        broken = False
        assert await tasks.retry(handle.id)
        assert await handle.result(timeout=WITHIN) == 7
        assert not await tasks.retry(handle.id)
    assert (await tasks.list(state="failed")).tasks == []


@pytest.mark.parametrize("error", [NoRetry("enough"), KeyError("named")])
async def test_some_errors_are_not_tried_again(tasks, error):
    @declare(tasks, retries=5, no_retry=(LookupError,))
    async def fail() -> None:
        raise error

    handle = await tasks.start(fail)
    async with worker(tasks):
        with pytest.raises(TaskFailed, match="after 1 executions"):
            await handle.result(timeout=WITHIN)


async def test_a_task_may_ask_to_be_tried_again_at_a_time_of_its_own(tasks):
    @declare(tasks, retries=1, backoff=300)
    async def again() -> int:
        if current_execution().attempt == 1:
            raise Retry("not yet", after=0.1)
        return current_execution().attempt

    async with worker(tasks):
        assert await (await tasks.start(again)).result(timeout=WITHIN) == 2


async def test_a_task_that_takes_too_long_is_cancelled_and_fails(tasks):
    cleaned = asyncio.Event()

    @declare(tasks, timeout=0.2)
    async def sleep() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.set()

    handle = await tasks.start(sleep)
    async with worker(tasks):
        with pytest.raises(TaskFailed, match=r"TimeoutError: it took longer than its timeout of 0\.2 s"):
            await handle.result(timeout=WITHIN)
    assert cleaned.is_set()


async def test_a_waiting_task_is_cancelled_at_once(tasks, rows):
    @declare(tasks)
    async def noop() -> None: ...

    handle = await tasks.start(noop, delay=60)
    assert await handle.cancel()
    assert not await handle.cancel()
    with pytest.raises(TaskCancelled):
        await handle.result(timeout=1)
    assert await rows() == 0
    assert await tasks.retry(handle.id)
    async with worker(tasks):
        assert await handle.result(timeout=WITHIN) is None


async def test_a_running_task_is_cancelled_from_another_process(tasks, address):
    running, cleaned = asyncio.Event(), asyncio.Event()

    @declare(tasks)
    async def sleep() -> None:
        running.set()
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.set()

    async with opened(address) as other, worker(tasks, heartbeat_timeout=300):
        await eventually(lambda: tasks.signals.heard)
        handle = other.get((await tasks.start(sleep)).id, "sleep")
        await running.wait()
        began = time.monotonic()
        assert await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(timeout=WITHIN)
        assert time.monotonic() - began < 1
    assert cleaned.is_set()
    assert (await handle_status(tasks, handle)).cancel_at is not None


async def handle_status(tasks, handle):
    return await tasks.read(handle.id)


async def test_a_cancellation_whose_signal_was_lost_is_found(tasks):
    running = asyncio.Event()

    @declare(tasks)
    async def sleep() -> None:
        running.set()
        await asyncio.sleep(60)

    async with worker(tasks):
        handle = await tasks.start(sleep)
        await running.wait()
        await tasks.database.execute("update freeloop.tasks set cancel_at = now()")
        with pytest.raises(TaskCancelled):
            await handle.result(timeout=1)


async def test_a_plain_function_hears_of_its_cancellation_by_its_progress(tasks):
    running = threading.Event()

    @declare(tasks)
    def work() -> None:
        for n in range(10_000):
            running.set()
            progress(n)
            time.sleep(0.01)

    async with worker(tasks):
        handle = await tasks.start(work)
        await eventually(running.is_set)
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(timeout=WITHIN)


async def test_a_plain_function_that_takes_too_long_hears_of_it_by_its_progress_and_fails(tasks):
    @declare(tasks, timeout=0.2)
    def work() -> None:
        for n in range(10_000):
            progress(n)
            time.sleep(0.01)

    handle = await tasks.start(work)
    async with worker(tasks):
        with pytest.raises(TaskFailed, match=r"TimeoutError: it took longer than its timeout of 0\.2 s"):
            await handle.result(timeout=WITHIN)
    assert (await handle.status()).progress.done < 9_999


async def test_a_task_that_ignores_its_cancellation_is_cancelled_again(tasks):
    running = asyncio.Event()
    ignored = 0

    @declare(tasks)
    async def stubborn() -> None:
        nonlocal ignored
        while True:
            running.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ignored += 1
                if ignored == 2:
                    raise

    async with worker(tasks, cleanup_timeout=0.2):
        handle = await tasks.start(stubborn)
        await running.wait()
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(timeout=WITHIN)
    assert ignored == 2


async def test_progress_is_seen_and_coalesced(tasks):
    @declare(tasks)
    async def work() -> None:
        for n in range(1, 1001):
            progress(n, 1000, f"step {n}")
            await asyncio.sleep(0.001)

    async with worker(tasks):
        handle = await tasks.start(work)
        seen = [status async for status in handle.events()]
    steps = [status.progress.done for status in seen if status.progress]
    assert steps == sorted(steps)
    assert steps[-1] == 1000
    assert 3 <= len(seen) <= 15
    assert seen[-1].state == "succeeded"
    assert seen[-1].progress.note == "step 1000"


async def test_events_go_on_behind_what_was_seen(tasks):
    @declare(tasks)
    async def noop() -> None: ...

    handle = await tasks.start(noop)
    first = await anext(handle.events())
    async with worker(tasks):
        await handle.result(timeout=WITHIN)
    assert [each.state async for each in handle.events(after=first.revision)] == ["succeeded"]
    assert [each async for each in handle.events(after=(await handle.status()).revision)] == []


@pytest.mark.parametrize("size", [1_000_000, 10_000_000])
async def test_arguments_may_have_a_megabyte_and_not_ten(tasks, size):
    @declare(tasks)
    async def measure(text: str) -> int:
        return len(text)

    if size > LARGEST:
        with pytest.raises(PayloadRefused, match="at most 1048576 bytes of JSON, got 10000011"):
            await tasks.start(measure, "x" * size)
    else:
        async with worker(tasks):
            assert await (await tasks.start(measure, "x" * size)).result(timeout=WITHIN) == size


async def test_arguments_that_do_not_fit_are_refused_at_the_start(tasks):
    @declare(tasks)
    async def add(a: int, b: int = 0) -> int:
        return a + b

    for args, kwargs, message in [
        (("x",), {}, "a: input should be a valid integer"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((), {}, "missing a required argument: 'a'"),
        ((1,), {"c": 1}, "unexpected keyword argument 'c'"),
    ]:
        with pytest.raises(PayloadRefused, match=message):
            await tasks.start(add, *args, **kwargs)


async def test_a_result_that_is_not_json_fails_the_task_without_a_retry(tasks):
    @declare(tasks, retries=3)
    async def odd() -> object:
        return threading.Lock()

    @declare(tasks, retries=3)
    async def large() -> str:
        return "x" * (LARGEST + 1)

    @declare(tasks, retries=3)
    async def wrong() -> int:
        return "seven"

    async with worker(tasks):
        for task, message in [
            (odd, "not JSON"),
            (large, "kept at most"),
            (wrong, "not what it is annotated"),
        ]:
            with pytest.raises(TaskFailed, match=f"after 1 executions: ResultRefused: .*{message}"):
                await (await tasks.start(task)).result(timeout=WITHIN)


async def test_arguments_of_an_older_version_fail_that_task_only(tasks, address):
    @declare(tasks)
    async def send(to: str) -> str:
        return to

    old, good = await tasks.start(send, "a@example.com"), await tasks.start(send, "b@example.com")
    await tasks.database.execute(
        "update freeloop.tasks set arguments = '{\"address\": 1}' where id = $1", old.id
    )
    async with worker(tasks):
        with pytest.raises(TaskFailed, match="another version of the code: to: field required"):
            await old.result(timeout=WITHIN)
        assert await good.result(timeout=WITHIN) == "b@example.com"


async def test_a_new_version_runs_old_tasks_where_its_new_parameter_has_a_default(tasks, address):
    @declare(tasks)
    async def send(to: str) -> str:
        return to

    handle = await tasks.start(send, "a@example.com")
    new = Tasks()

    @declare(new, "send")
    async def send_with_copy(to: str, copy: str = "none") -> str:
        return f"{to} {copy}"

    async with opened(address, new), worker(new):
        assert await new.get(handle.id, "send").result(timeout=WITHIN) == "a@example.com none"


async def test_a_task_that_no_worker_knows_waits(tasks, address):
    @declare(tasks)
    async def known() -> None: ...

    other = Tasks()

    @declare(other)
    async def unknown() -> None: ...

    async with opened(address, other), worker(tasks):
        waiting = await other.start(unknown)
        await (await tasks.start(known)).result(timeout=WITHIN)
        assert await waiting.state() == "queued"


async def test_a_worker_takes_from_its_queues_only(tasks):
    @declare(tasks, queue="mail")
    async def mail() -> None: ...

    @declare(tasks, queue="video")
    async def video() -> None: ...

    async with worker(tasks, queues=["mail"]):
        waiting = await tasks.start(video)
        await (await tasks.start(mail)).result(timeout=WITHIN)
        assert await waiting.state() == "queued"


async def test_a_tasks_concurrency_holds_across_workers(tasks, address):
    running = most = 0
    other = Tasks()
    for each in (tasks, other):

        @declare(each, "one_at_a_time", concurrency=2)
        async def one() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1

    async with opened(address, other), worker(tasks), worker(other):
        handles = await tasks.start_many([one.bind()] * 12)
        await asyncio.gather(*(tasks.get(h.id, h.name).result(timeout=WITHIN) for h in handles))
    assert most == 2


async def test_middleware_goes_around_each_execution(tasks):
    seen = []

    async def outer(execution, call_next):
        seen.append(f"outer {execution.route}")
        try:
            return [await call_next()]
        finally:
            seen.append("out")

    async def inner(execution, call_next):
        seen.append("inner")
        return await call_next() + 1

    tasks.middleware += [outer, inner]

    @declare(tasks)
    async def one() -> object:
        return 1

    async with worker(tasks):
        assert await (await tasks.start(one)).result(timeout=WITHIN) == [2]
    assert seen == ["outer one", "inner", "out"]


async def test_complete_ends_the_task_with_its_own_transaction(tasks):
    await tasks.database.execute("create table effects (n int)")

    @declare(tasks, retries=3, backoff=0)
    async def write(n: int) -> int:
        async with tasks.database.transaction() as transaction:
            await transaction.execute("insert into effects values ($1)", n)
            await complete(n * 2, in_=transaction)
            if current_execution().attempt == 1:
                raise ValueError("rolled back")
        raise ValueError("too late to fail")

    async with worker(tasks):
        handle = await tasks.start(write, 21)
        assert await handle.result(timeout=WITHIN) == 42
        await eventually(lambda: not tasks_running(tasks))
    assert (await handle.status()).attempt == 2
    assert await tasks.database.fetch_value("select count(*) from effects") == 1


def tasks_running(tasks):
    return [each for each in asyncio.all_tasks() if each.get_name().startswith("task-")]


async def test_a_stop_hands_back_what_runs_untouched(tasks):
    running = asyncio.Event()

    @declare(tasks)
    async def sleep() -> str:
        running.set()
        if current_execution().attempt == 1:
            await asyncio.sleep(60)
        return "done"

    handle = await tasks.start(sleep)
    async with worker(tasks):
        await running.wait()
    status = await handle.status()
    assert (status.state, status.attempt, status.failures, status.losses) == ("queued", 1, 0, 0)
    assert await tasks.database.fetch_value("select count(*) from freeloop.workers") == 0
    async with worker(tasks):
        assert await handle.result(timeout=WITHIN) == "done"


async def test_a_drained_worker_lets_what_runs_end_and_takes_no_more(tasks):
    running, may_end = asyncio.Event(), asyncio.Event()

    @declare(tasks)
    async def work() -> str:
        running.set()
        await may_end.wait()
        return "done"

    async with worker(tasks) as taker:
        first = await tasks.start(work)
        await running.wait()
        taker.stop()
        second = await tasks.start(work)
        may_end.set()
        await taker.wait_idle()
        assert [await first.state(), await second.state()] == ["succeeded", "queued"]


async def test_an_end_lets_a_worker_with_room_look_for_nothing(tasks, monkeypatch):
    may_end = asyncio.Event()
    heard, looks = [], []

    @declare(tasks)
    async def work() -> None:
        await may_end.wait()

    take = tasks.engine.take

    async def take_and_note(*arguments, **options):
        looks.append(1)
        return await take(*arguments, **options)

    monkeypatch.setattr(tasks.engine, "take", take_and_note)
    async with worker(tasks, heartbeat_timeout=300) as taker:
        await eventually(lambda: tasks.signals.heard)
        tasks.signals.hear(heard.append)
        handle = await tasks.start(work)
        await eventually(lambda: len(taker) and heard.count(QUEUED) == 2)  # its own, and its echo
        await eventually(lambda: not taker._wake.is_set())
        await settle(tasks)
        before = len(looks)
        may_end.set()
        await handle.result(timeout=WITHIN)
        await taker.wait_idle()
        await settle(tasks)
        assert len(looks) == before


async def settle(tasks):
    """Let pass what a look takes, several times."""
    for _ in range(20):
        await tasks.database.fetch_value("select 1")


async def test_the_list_has_pages(tasks):
    @declare(tasks)
    async def noop(n: int) -> None: ...

    handles = await tasks.start_many([noop.bind(n) for n in range(5)])
    page = await tasks.list(limit=2)
    seen = [each.id for each in page.tasks]
    while page.next:
        page = await tasks.list(limit=2, before=page.next)
        seen += [each.id for each in page.tasks]
    assert seen == [handle.id for handle in reversed(handles)]


async def test_ended_tasks_are_deleted_by_their_age_and_their_keys_are_free_again(tasks):
    @declare(tasks)
    async def noop() -> None: ...

    handles = await tasks.start_many([noop.bind().keyed(str(n)) for n in range(5)])
    async with worker(tasks):
        await asyncio.gather(*(handle.result(timeout=WITHIN) for handle in handles))
    waiting = await tasks.start(noop, delay=3600)
    assert await TaskRetention(tasks.database, max_age=3600).prune() == 0
    assert await TaskRetention(tasks.database, max_age=0, batch=2).prune() == 5
    assert [each.id for each in (await tasks.list()).tasks] == [waiting.id]
    assert (await tasks.start(noop, key="0")).created


@pytest.mark.parametrize("state", ["failed", "succeeded", "cancelled", "queued"])
async def test_a_page_of_what_few_have_looks_at_a_bounded_number(tasks, monkeypatch, state):
    monkeypatch.setattr(store, "_LOOK", 10)
    other = "queued" if state != "queued" else "cancelled"
    await tasks.database.execute(
        "insert into freeloop.tasks (id, name, queue, priority, job, arguments, state, failed_at) "
        "select md5(n::text)::uuid, 'noop', 'default', 0, n, '{}', each, "
        "case when each = 'failed' then now() end "
        "from generate_series(1, 100) n, "
        "lateral (select case when n in (7, 70) then $1 else $2 end) as s(each)",
        state,
        other,
    )
    found, pages = [], 0
    page = await tasks.list(limit=50, state=state)
    while True:
        pages += 1
        found += page.tasks
        assert len(page.tasks) <= 2
        if page.next is None:
            break
        page = await tasks.list(limit=50, state=state, before=page.next)
    assert [each.state for each in found] == [state, state]
    assert [each.id for each in found] == sorted((each.id for each in found), reverse=True)
    # Failures have an index; of the others each page looks at ten of the hundred.
    assert pages == (1 if state == "failed" else 11)


async def test_an_id_that_is_not_there(tasks):
    handle = tasks.get(uuid4())
    for call in (handle.status, handle.cancel, lambda: tasks.retry(handle.id)):
        with pytest.raises(NotFound, match=str(handle.id)):
            await call()


async def test_what_cannot_be_declared_or_started(tasks):
    with pytest.raises(TypeError, match="parameters with names"):
        declare(tasks, "variadic")(lambda *args: None)

    async def named(key: str) -> None: ...

    with pytest.raises(TypeError, match="rename its parameter 'key'"):
        declare(tasks)(named)

    @declare(tasks)
    async def noop() -> None: ...

    with pytest.raises(ValueError, match="there is a task 'noop' already"):
        declare(tasks, "noop")(noop.function)
    with pytest.raises(ValueError, match="time zone"):
        await tasks.start(noop, at=datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused
    with pytest.raises(ValueError, match="not both"):
        await tasks.start(noop, delay=1, at=datetime.now(UTC))
    with pytest.raises(Unprocessable, match="Got 256"):
        await tasks.start(noop, key="x" * 256)
    with pytest.raises(RuntimeError, match="tasks are not open"):
        await Tasks().start(noop)
