"""What the tree says of real programs, one for each way to wait, on both loops."""

import asyncio
import contextlib
import gc
import importlib
import math
import queue
import sys
import threading
import time
import weakref
from contextlib import asynccontextmanager

import aiohttp
import anyio
import pytest

from freeloop.scope import Scope
from freeloop.testing import eventually
from freeloop.threads import ThreadPool
from freeloop.tree import TaskNode, Tree
from freeloop.tree.capture import Capture
from freeloop.tree.coroutines import Step
from freeloop.tree.functions import FUNCTIONS
from freeloop.tree.sightings import Sightings
from tree_looks import child, look, running, settled

BOUND = 0.010  # seconds that a look may hold the loop
LOOKS, ENOUGH = 20, 3  # those that a machine busy with others may take, and those that have to hold
counted = pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python counts no borrowed references")


@pytest.fixture(params=["uvloop", "asyncio"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def direct():
    await child("direct.1")


async def gathered():
    await asyncio.gather(child("gathered.1"), asyncio.gather(child("gathered.2"), child("gathered.3")))


async def waited():
    await asyncio.wait([child("waited.1"), child("waited.2")])


async def first():
    await asyncio.wait([child("first.1"), child("first.2")], return_when=asyncio.FIRST_COMPLETED, timeout=50)


async def limited():
    await asyncio.wait_for(child("limited.1"), 50)


async def shielded():
    await asyncio.shield(child("shielded.1"))


async def shielded_gather():
    await asyncio.shield(asyncio.gather(child("shielded_gather.1"), child("shielded_gather.2")))


async def grouped():
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60), name="grouped.1")
        group.create_task(asyncio.sleep(60), name="grouped.2")


async def completed():
    for task in asyncio.as_completed([child("completed.1"), child("completed.2")]):
        await task


async def anyio_grouped():
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 60, name="anyio_grouped.1")
        group.start_soon(anyio.sleep, 60, name="anyio_grouped.2")


@pytest.mark.parametrize(
    ("program", "children", "needs"),
    [
        (direct, 1, "all"),
        (gathered, 3, "all"),
        (waited, 2, "all"),
        (first, 2, "any"),
        (limited, 1, "all"),
        (shielded, 1, "all"),
        (shielded_gather, 2, "all"),
        (grouped, 2, "all"),
        (completed, 2, "any"),
        (anyio_grouped, 2, "all"),
    ],
)
async def test_a_task_waits_for_its_children_and_for_nobody_else(program, children, needs):
    name = program.__name__
    async with running(**{name: program()}):
        seen = await look()
    expected = {f"{name}.{number}" for number in range(1, children + 1)}
    assert seen.on(name) == expected
    assert seen[name].wait.needs == needs
    assert seen.edges() == {(name, each) for each in expected}
    assert all(seen.awaited_by(each) == {name} for each in expected)
    assert seen[name].stack[0].function == name
    line = program.__code__.co_firstlineno
    assert line < seen[name].stack[0].line < line + 8
    assert seen[name].stack[0].file == __file__
    assert all(seen[each].wait.kind == "sleep" for each in expected)
    assert {f"{name}.1"} <= set(seen[name].wait.text.replace(",", "").split())
    assert not seen.snapshot.deadlocks


async def test_a_child_of_a_group_belongs_to_it_also_while_the_group_does_something_else():
    async def parent():
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60), name="parent.child")
            await asyncio.sleep(60)

    async with running(parent=parent()):
        seen = await look()
    assert seen["parent"].wait.kind == "sleep"
    assert not seen["parent.child"].awaited_by
    assert seen["parent.child"].parent == seen["parent"].id


@pytest.mark.skipif(sys.version_info < (3, 14), reason="asyncio keeps no call graph")
async def test_who_awaits_a_task_is_known_from_asyncios_call_graph_where_no_callback_tells():
    async def parent():
        awaited, me = asyncio.create_task(asyncio.sleep(60), name="parent.child"), asyncio.current_task()
        asyncio.future_add_to_awaited_by(awaited, me)
        try:
            await asyncio.Event().wait()  # as a library of its own might
        finally:
            asyncio.future_discard_from_awaited_by(awaited, me)

    async with running(parent=parent()):
        seen = await look()
    assert seen.awaited_by("parent.child") == {"parent"}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # uvloop refuses it
async def test_a_sleep_without_end_does_not_say_when_it_ends(anyio_backend):
    async with running(sleeper=asyncio.sleep(math.inf)):
        seen = await look()
    assert seen["sleeper"].wait.ends_in is None


async def test_a_sleep_says_since_when_and_until_when():
    began = time.monotonic()
    async with running(sleeper=asyncio.sleep(60)):
        seen = await look()
    wait = seen["sleeper"].wait
    assert not wait.at_least
    assert 0 <= wait.seconds <= time.monotonic() - began + 0.01
    assert wait.seconds + wait.ends_in == pytest.approx(60, abs=0.01)


async def test_what_was_seen_once_is_known_to_wait_since_then_at_least():
    event = asyncio.Event()
    with Tree() as tree:
        async with running(waiter=event.wait()):
            began = time.monotonic()
            first_look = await look(tree)
            looked = time.monotonic()
            await eventually(lambda: time.monotonic() - looked > 0.2)
            second = await look(tree)
    assert first_look["waiter"].wait.at_least
    assert first_look["waiter"].wait.seconds <= looked - began
    assert second["waiter"].wait.at_least
    assert second["waiter"].wait.seconds >= 0.2


async def test_the_chain_goes_through_asynchronous_generators_and_context_managers():
    async def innermost():
        await asyncio.sleep(60)

    async def numbers():
        await innermost()
        yield 1

    @asynccontextmanager
    async def block():
        async for _ in numbers():
            yield

    async def outermost():
        async with block():
            pass

    async with running(chain=outermost()):
        seen = await look()
    names = [place.function.rpartition(".")[2] for place in seen["chain"].stack]
    assert names == ["outermost", "__aenter__", "block", "numbers", "innermost", "sleep"]


@pytest.mark.parametrize("make", [asyncio.Lock, anyio.Lock])
async def test_a_lock_names_who_holds_it(make):
    lock = make()

    async def hold():
        async with lock:
            await asyncio.sleep(60)

    async def want():
        async with lock:
            pass

    async with running(holder=hold(), first=want(), second=want()):
        seen = await look()
    for name in ("first", "second"):
        wait = seen[name].wait
        assert wait.kind == "lock"
        assert [holder.name for holder in wait.holders] == ["holder"]
        assert not wait.open
        assert "held by holder" in wait.text
    assert seen.awaited_by("holder") == {"first", "second"}
    assert not seen.snapshot.deadlocks


async def test_the_holder_is_found_behind_context_managers_and_exit_stacks():
    lock, other = asyncio.Lock(), asyncio.Lock()

    @asynccontextmanager
    async def locked():
        async with lock:
            yield

    async def hold():
        async with locked():
            await asyncio.sleep(60)

    async def hold_other():
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(other)
            await asyncio.sleep(60)

    async def want(which):
        async with which:
            pass

    async with running(holder=hold(), stacker=hold_other(), one=want(lock), two=want(other)):
        seen = await look()
    assert seen.on("one") == {"holder"}
    assert seen.on("two") == {"stacker"}


async def test_where_the_holder_cannot_be_known_nobody_is_named():
    lock = asyncio.Lock()

    async def take():
        await lock.acquire()
        await asyncio.sleep(60)

    async with running(taker=take(), want=lock.acquire()):
        seen = await look()
    assert seen["want"].wait.holders == ()
    assert seen["want"].wait.open


async def test_a_condition_that_is_waited_for_does_not_hold_its_lock():
    condition = asyncio.Condition()
    free = asyncio.Event()

    async def sleeper():
        async with condition:
            await condition.wait()

    async def holder():
        async with condition:
            free.set()
            await asyncio.sleep(60)

    async def want():
        await free.wait()
        async with condition:
            pass

    async with running(sleeper=sleeper(), holder=holder(), want=want()):
        seen = await look()
    assert seen["sleeper"].wait.kind == "condition"
    assert seen.on("want") == {"holder"}


async def test_a_semaphore_names_all_who_hold_it():
    semaphore = asyncio.BoundedSemaphore(2)

    async def use():
        async with semaphore:
            await asyncio.sleep(60)

    async with running(a=use(), b=use(), c=use()):
        seen = await look()
    assert seen.on("c") == {"a", "b"}
    assert seen["c"].wait.needs == "any"
    assert not seen["c"].wait.open


async def test_a_limiter_names_who_has_borrowed():
    limiter = anyio.CapacityLimiter(1)

    async def use():
        async with limiter:
            await asyncio.sleep(60)

    async with running(a=use(), b=use()):
        seen = await look()
    assert seen.on("b") == {"a"}
    assert "1 of 1 borrowed" in seen["b"].wait.text


async def test_queues_streams_events_and_conditions_are_named_with_their_state():
    full, empty = asyncio.Queue(1), asyncio.Queue()
    full.put_nowait(1)
    event, condition, barrier = asyncio.Event(), asyncio.Condition(), asyncio.Barrier(2)
    send, receive = anyio.create_memory_object_stream(0)
    other_send, other_receive = anyio.create_memory_object_stream(0)
    future = asyncio.get_running_loop().create_future()

    async def notified():
        async with condition:
            await condition.wait()

    async def awaits():
        await future

    with send, receive, other_send, other_receive:
        async with running(
            getter=empty.get(),
            putter=full.put(2),
            joiner=full.join(),
            event=event.wait(),
            condition=notified(),
            barrier=barrier.wait(),
            receiver=receive.receive(),
            sender=other_send.send(1),
            future=awaits(),
        ):
            seen = await look()
    kinds = {name: seen[name].wait.kind for name in seen.names.values() if seen[name].wait}
    expected = {
        "getter": "queue-get",
        "putter": "queue-put",
        "joiner": "queue-join",
        "event": "event",
        "condition": "condition",
        "barrier": "barrier",
        "receiver": "queue-get",
        "sender": "queue-put",
        "future": "future",
    }
    assert expected.items() <= kinds.items()
    assert "(0 in it)" in seen["getter"].wait.text
    assert "(1 of 1 in it)" in seen["putter"].wait.text
    assert "Event" in seen["event"].wait.text


@pytest.mark.parametrize("way", ["to_thread", "run_sync", "executor", "pool"])
async def test_a_thread_is_named_with_what_it_runs_and_where_it_stands(way):
    release = queue.SimpleQueue()
    began = threading.Event()

    def work():
        began.set()
        release.get()

    ways = {
        "to_thread": asyncio.to_thread,
        "run_sync": anyio.to_thread.run_sync,
        "executor": run_in_executor,
        "pool": ThreadPool("test").run,
    }
    try:
        async with running(waiter=ways[way](work)):
            await eventually(began.is_set)
            seen = await look()
            release.put(None)
    finally:
        release.put(None)
    wait = seen["waiter"].wait
    assert wait.kind == "thread"
    if way != "executor":  # which tells nobody what it runs
        assert f"{__name__}.{work.__qualname__}" in wait.text
    (holder,) = wait.holders
    assert holder.name
    assert holder.place == f"{__file__}:{work.__code__.co_firstlineno + 2} in {work.__qualname__}"
    assert holder.place in wait.text


async def run_in_executor(function):
    await asyncio.get_running_loop().run_in_executor(None, function)


async def test_a_call_that_waits_for_a_thread_says_how_many_are_busy():
    pool = ThreadPool("small", size=1)
    release = threading.Event()
    try:
        async with running(a=pool.run(release.wait, 30), b=pool.run(time.monotonic)):
            seen = await look()
            release.set()
    finally:
        release.set()
    assert seen["a"].wait.kind == "thread"
    assert seen["b"].wait.text == "a free thread of pool 'small' (1 of 1 busy)"


async def test_streams_name_their_peer():
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with running(**{"read.er": reader.read()}):
        seen = await look()
    writer.close()
    await writer.wait_closed()
    server.close()
    assert seen["read.er"].wait.text == f"data from 127.0.0.1:{port}"


async def test_a_call_of_plain_aiohttp_names_its_url_without_secrets():
    arrived = asyncio.Event()

    async def hold(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as session:

        async def call():
            async with session.get(f"http://127.0.0.1:{port}/path?key=secret"):
                pass

        async with running(**{"call.er": call()}):
            async with asyncio.timeout(5):
                await arrived.wait()
            seen = await look()
    server.close()
    assert seen["call.er"].wait.kind == "upstream"
    assert f"127.0.0.1:{port}/path" in seen["call.er"].wait.text
    assert "secret" not in seen["call.er"].wait.text


async def test_a_task_belongs_to_its_scope_and_so_do_its_children():
    async def request():
        scope = Scope("r-1", kind="http", route="/things/{id}", seconds=30)
        scope.enter()
        try:
            with scope.borrow("connection", "main"):
                await asyncio.gather(child("request.1"))
        finally:
            scope.leave()

    async with running(request=request()):
        seen = await look()
    (scope,) = seen.snapshot.scopes
    assert (scope.request, scope.kind, scope.route, scope.over) == ("r-1", "http", "/things/{id}", False)
    assert 29 < scope.left <= 30
    assert [lease.name for lease in scope.leases] == ["connection main"]
    assert __file__ in scope.leases[0].place
    assert seen["request"].scope == seen["request.1"].scope == scope.id


async def test_what_outlives_its_scope_is_told_apart():
    async def request():
        scope = Scope("r-2", kind="http", route="/gone")
        scope.enter()
        left = child("left.over")
        scope.leave()
        return left

    async with running(request=request()):
        seen = await look()
    (scope,) = seen.snapshot.scopes
    assert scope.over
    assert seen["left.over"].scope == scope.id


async def test_a_deadlock_of_two_is_named_with_who_waits_behind_it():
    one, two = asyncio.Lock(), asyncio.Lock()
    both = asyncio.Barrier(2)

    async def take(mine, theirs):
        async with mine:
            await both.wait()
            async with theirs:
                pass

    async def late():
        async with one:
            pass

    async with running(a=take(one, two), b=take(two, one), late=late(), free=asyncio.sleep(60)):
        seen = await look()
    (deadlock,) = seen.snapshot.deadlocks
    assert {seen.names[number] for number in deadlock.tasks} == {"a", "b"}
    assert {seen.names[number] for number in deadlock.behind} == {"late"}


async def test_a_deadlock_of_three_through_a_lock_a_task_and_a_group():
    lock = asyncio.Lock()
    tasks = {}
    ready = asyncio.Event()

    async def holds_the_lock_and_awaits():
        async with lock:
            await ready.wait()
            await tasks["b"]

    async def awaits_a_group():
        await ready.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(wants_the_lock(), name="c.c")

    async def wants_the_lock():
        async with lock:
            pass

    async with running(a=holds_the_lock_and_awaits(), b=awaits_a_group()) as started:
        tasks["b"] = started[1]
        ready.set()
        await settled()
        seen = await look()
        started[1].cancel()
    (deadlock,) = seen.snapshot.deadlocks
    names = [seen.names[number] for number in deadlock.tasks]
    start = names.index("a")
    assert names[start:] + names[:start] == ["a", "b", "c.c"]


async def test_a_task_that_wants_its_own_lock_again_is_a_deadlock_of_one():
    lock = asyncio.Lock()

    async def twice():
        async with lock, lock:
            pass

    async with running(twice=twice()):
        seen = await look()
    (deadlock,) = seen.snapshot.deadlocks
    assert deadlock.tasks == (seen["twice"].id,)


async def test_who_may_be_woken_by_somebody_else_is_in_no_deadlock():
    lock = asyncio.Lock()
    event = asyncio.Event()

    async def holder():
        async with lock:
            await asyncio.wait(
                [asyncio.create_task(event.wait(), name="x.1"), asyncio.create_task(want(), name="x.2")],
                return_when=asyncio.FIRST_COMPLETED,
            )

    async def want():
        async with lock:
            pass

    async with running(holder=holder()):
        seen = await look()
    assert seen.on("x.2") == {"holder"}
    assert not seen.snapshot.deadlocks


@counted
async def test_a_wait_that_nobody_can_end_is_found_and_others_are_not():
    kept = asyncio.Event()
    kept_future = asyncio.get_running_loop().create_future()

    async def lost_event():
        await asyncio.Event().wait()

    async def lost_future():
        future = asyncio.get_running_loop().create_future()
        await future

    async def lost_queue():
        queue = asyncio.Queue()
        await queue.get()

    async def has_timer():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(60, future.set_result, None)
        await future

    async def awaits():
        await kept_future

    async with running(
        lost_event=lost_event(),
        lost_future=lost_future(),
        lost_queue=lost_queue(),
        has_timer=has_timer(),
        waits_for_kept=kept.wait(),
        future=awaits(),
        sleeper=asyncio.sleep(60),
        thread=asyncio.to_thread(time.sleep, 0.3),
    ):
        await look()
        seen = await look()  # not misled by what the look before has left behind
    orphaned = {task.name for task in seen.snapshot.tasks if task.wait and task.wait.orphaned}
    assert orphaned == {"lost_event", "lost_future", "lost_queue"}


@counted
async def test_a_task_that_nobody_keeps_is_found():
    async def forgotten():
        await asyncio.sleep(60)

    async def start():
        asyncio.create_task(forgotten(), name="for.gotten")  # noqa: RUF006 - as people do
        await asyncio.sleep(60)

    async with running(start=start(), kept=forgotten()):
        await look()
        seen = await look()
    assert ("unkept", "for.gotten") in seen.lints
    assert {name for lint, name in seen.lints if lint == "unkept"} == {"for.gotten"}


async def test_a_task_that_only_asks_for_its_next_turn_is_found():
    stop = False

    async def spin():
        while not stop:
            await asyncio.sleep(0)

    spinner = asyncio.create_task(spin(), name="spin.ner")
    tree = Tree()
    try:
        for _ in range(2):
            assert ("self-waking", "spin.ner") not in (await look(tree)).lints
        assert ("self-waking", "spin.ner") in (await look(tree)).lints
    finally:
        stop = True
        await spinner


async def test_a_look_leaves_nothing_behind_and_keeps_nothing_of_the_app_alive():
    class Big:
        pass

    alive = []
    looked, over = asyncio.Event(), asyncio.Event()

    async def request():
        big = Big()
        alive.append(weakref.ref(big))
        await looked.wait()
        del big
        await over.wait()

    def look_and_forget():
        tree.look()

    def count_ours():
        return sum(isinstance(each, Capture | Step | TaskNode) for each in gc.get_objects())

    tree = Tree()
    async with running(request=request()):
        gc.collect()
        gc.disable()  # a ring would wait for it
        try:
            before = count_ours()
            await asyncio.to_thread(look_and_forget)
            after = count_ours()
            assert alive[0]() is not None
            looked.set()
            await settled()
            assert alive[0]() is None
        finally:
            gc.enable()
    assert after == before


async def test_another_thread_may_look_while_everything_moves():
    """As where a hung loop goes on just then: what is told may be torn, but nothing breaks."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    sightings = Sightings()
    lock = asyncio.Lock()
    over = False

    async def churn():
        while not over:
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(locked())
            await asyncio.gather(*[asyncio.create_task(asyncio.sleep(0)) for _ in range(10)])
            await asyncio.wait([asyncio.create_task(locked()) for _ in range(10)])

    async def locked():
        async with lock:
            await asyncio.sleep(0)

    def watch():
        seen = 0
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            capture = Capture(loop, sightings, hung=True, loop_thread=thread)
            for _ in capture.steps():
                pass
            snapshot = capture.finish()
            seen += len(snapshot.tasks)
            assert not snapshot.deadlocks
        return seen

    churning = [asyncio.create_task(churn()) for _ in range(5)]
    try:
        assert await asyncio.to_thread(watch) > 100
    finally:
        over = True
        await asyncio.gather(*churning)


async def test_ten_thousand_tasks_do_not_hold_the_loop(anyio_backend):
    lock = asyncio.Lock()

    async def deep(levels):
        if levels:
            await deep(levels - 1)
        else:
            await asyncio.sleep(60)

    async def gather():
        await asyncio.gather(*[asyncio.create_task(deep(5), name="many.d") for _ in range(9)])

    async def locked():
        async with lock:
            await asyncio.sleep(60)

    tasks = [asyncio.create_task(gather(), name="many.g") for _ in range(900)]
    tasks += [asyncio.create_task(locked(), name="many.l") for _ in range(1000)]
    await settled()
    tree = Tree()
    worst = []
    for _ in range(LOOKS):  # the machine itself is late now and then
        held = Held()
        seen = await held.during(lambda: sum(map(len, tree.answer({}))))
        worst.append(held.longest)
        assert seen > 10_000
        if sum(each < BOUND for each in worst) >= ENOUGH:
            break
    snapshot = (await look(tree)).snapshot
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(snapshot.tasks) >= 10_000
    assert sum(each < BOUND for each in worst) >= ENOUGH, worst


class Held:
    """How long the loop was kept from its next turn.

    In seconds of the process's own CPU time, all threads together: others on the machine do not count.
    """

    def __init__(self):
        self.longest = 0.0

    async def during(self, function):
        thread = asyncio.create_task(asyncio.to_thread(function))
        while not thread.done():
            before = time.process_time()
            await asyncio.sleep(0.0005)
            self.longest = max(self.longest, time.process_time() - before)
        return thread.result()


# Functions that only some versions of Python have, and what others have in their place.
ELSEWHERE = {
    "TaskGroup._aexit": "TaskGroup.__aexit__",
    "_AsCompletedIterator._wait_for_one": "as_completed",
    "as_completed.<locals>._wait_for_one": "as_completed",
}


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_each_function_that_is_known_by_name_exists(module, name):
    def find(name):
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        return found

    assert callable(find(name) or find(ELSEWHERE.get(name, name)))
