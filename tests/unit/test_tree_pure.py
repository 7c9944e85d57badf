"""What is decided and said of a snapshot: deadlocks, mistakes, words, text. No event loop in sight."""

import string
import sys

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloop.tree.cycles import find_deadlocks, find_stuck
from freeloop.tree.forest import plant
from freeloop.tree.functions import FUNCTIONS
from freeloop.tree.lints import find_mistakes
from freeloop.tree.model import (
    Deadlock,
    Finding,
    Holder,
    Place,
    ScopeNode,
    Snapshot,
    TaskNode,
    Wait,
    read_snapshot,
)
from freeloop.tree.render import render
from freeloop.tree.waits import PHRASES, describe_wait, say_seconds

APP = Place("/srv/shop.py", 7, "buy", "shop")
INNER = Place("/usr/lib/python3/asyncio/locks.py", 110, "Lock.acquire", "asyncio.locks")


def wait(*on, needs="all", is_open=False, **fields):
    return Wait("lock", "a lock", on=on, needs=needs, open=is_open, **fields)


def task(number, wait=None, **fields):
    given = {"name": f"task-{number}", "state": "waiting", "scope": None, "stack": (APP, INNER), "wait": wait}
    return TaskNode(id=number, **{**given, **fields})


def test_a_ring_is_a_deadlock_and_who_waits_for_it_is_behind():
    (found,) = find_deadlocks({1: wait(2), 2: wait(3), 3: wait(1), 4: wait(2), 5: wait(4), 6: wait()})
    assert found == Deadlock((1, 2, 3), (4, 5))


def test_a_task_that_waits_for_itself_is_one():
    assert find_deadlocks({1: wait(1)}) == [Deadlock((1,))]


def test_two_rings_are_two_deadlocks_the_one_with_more_behind_it_first():
    found = find_deadlocks({1: wait(2), 2: wait(1), 3: wait(4), 4: wait(3), 5: wait(4)})
    assert found == [Deadlock((3, 4), (5,)), Deadlock((1, 2))]


@pytest.mark.parametrize(
    "waits",
    [
        {},
        {1: wait(2), 2: wait(3)},  # a chain whose end is not known to wait
        {1: wait(2, 3, needs="any"), 2: wait(1), 3: wait()},  # a way out
        {1: wait(2, needs="any", is_open=True), 2: wait(1)},  # somebody else may wake it
        {1: wait(2, 9, needs="any"), 2: wait(1)},  # 9 runs
    ],
)
def test_a_way_out_is_no_deadlock(waits):
    assert find_deadlocks(waits) == []


def test_all_of_several_are_stuck_by_one_of_them():
    (found,) = find_deadlocks({1: wait(2, 3), 2: wait(1), 3: wait()})
    assert found == Deadlock((1, 2))


def test_any_of_several_are_stuck_only_by_all_of_them():
    assert find_stuck({1: wait(2, 3, needs="any"), 2: wait(1), 3: wait(1)}) == {1, 2, 3}


def test_ten_thousand_tasks_in_one_ring_and_in_one_chain_are_no_matter():
    ring = {number: wait((number + 1) % 10_000) for number in range(10_000)}
    (found,) = find_deadlocks(ring)
    assert len(found.tasks) == 10_000
    ring[0] = wait()
    assert find_deadlocks(ring) == []


@given(
    st.dictionaries(
        st.integers(0, 8),
        st.builds(
            lambda on, needs, is_open: wait(*on, needs=needs, is_open=is_open),
            st.lists(st.integers(0, 9), max_size=3, unique=True),
            st.sampled_from(["all", "any"]),
            st.booleans(),
        ),
    )
)
def test_who_is_stuck_is_whoever_never_goes_on_when_all_others_do_what_they_can(waits):
    def can_go(number, gone):
        each = waits[number]
        done = [on not in waits or on in gone for on in each.on]
        if each.needs == "all":
            return all(done)
        return each.open or not each.on or any(done)

    gone = set()
    while more := {number for number in waits if number not in gone and can_go(number, gone)}:
        gone |= more
    assert find_stuck(waits) == set(waits) - gone
    for deadlock in find_deadlocks(waits):
        following = [*deadlock.tasks[1:], deadlock.tasks[0]]
        assert all(after in waits[before].on for before, after in zip(deadlock.tasks, following, strict=True))


def lints_of(*tasks, **options):
    return [(finding.lint, finding.task) for finding in find_mistakes(tasks, **options)]


def test_a_lost_wait_is_told_once_it_is_long():
    orphan = Wait("event", "Event 0x1 to be set", seconds=11.0, orphaned=True)
    assert lints_of(task(1, orphan)) == [("lost", 1)]
    assert lints_of(task(1, orphan), long_wait=12) == []
    (finding,) = find_mistakes([task(1, orphan, kept=False, awaited_by=(2,))])
    assert "nobody can complete it" in finding.text
    assert "garbage collector" in finding.text


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"kept": False}, [("unkept", 1)]),
        ({"kept": False, "awaited_by": (2,)}, []),
        ({"kept": False, "state": "running"}, []),
        ({"kept": False, "stack": (INNER, APP)}, []),  # a library's own
        ({"yields": 2}, []),
        ({"yields": 3}, [("self-waking", 1)]),
    ],
)
def test_the_other_mistakes(fields, found):
    assert lints_of(task(1, **fields)) == found


def test_each_kind_of_wait_that_is_found_has_words():
    import inspect

    from freeloop.tree import functions

    source = inspect.getsource(functions)
    kinds = {word for word in PHRASES if f'"{word}"' in source}
    assert kinds == set(PHRASES)
    fields = {field for phrase in PHRASES.values() for _, field, _, _ in string.Formatter().parse(phrase)}
    assert fields <= {None, "name", "tasks", "which"}
    assert FUNCTIONS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "task", "tasks": ["a"]}, "a"),
        ({"kind": "tasks", "tasks": ["a", "b"]}, "all of a and b"),
        (
            {"kind": "tasks", "tasks": ["a", "b", "c", "d", "e"], "needs": "any"},
            "the first of a, b, c and 2 more",
        ),
        ({"kind": "group", "tasks": ["a", "b"]}, "the end of its task group: a and b"),
        ({"kind": "lock", "name": "Lock 0x1"}, "Lock 0x1"),
        (
            {"kind": "lock", "name": "Lock 0x1", "holders": [Holder(1, "a", "x.py:1 in f", 2.0)]},
            "Lock 0x1, held by a for 2.0 s at x.py:1 in f",
        ),
        (
            {"kind": "connection", "name": "'main'", "holders": [Holder(None, "")], "more": 2},
            "a connection of pool 'main', held by somebody and 2 more",
        ),
        (
            {"kind": "thread", "name": "f", "holders": [Holder(None, "t", "x.py:1 in f")]},
            "a thread that runs f, now at x.py:1 in f",
        ),
    ],
)
def test_waits_in_words(arguments, words):
    given = {"name": "", "needs": "all", "tasks": [], "holders": [], **arguments}
    assert describe_wait(given.pop("kind"), given.pop("name"), **given) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((None, "–"), (-1, "0 ms"), (0.0, "0 ms"), (0.0012, "1.2 ms"), (0.0994, "99.4 ms")),
        *((0.25, "0.25 s"), (0.997, "1.0 s"), (4.0, "4.0 s"), (99.94, "99.9 s"), (99.96, "1 min 40 s")),
        *((119.7, "2 min 0 s"), (200, "3 min 20 s"), (3599.7, "1 h 0 min"), (7260, "2 h 1 min")),
    ],
)
def test_seconds_as_people_read_them(seconds, words):
    assert say_seconds(seconds) == words


SNAPSHOT = Snapshot(
    pid=42,
    loop="uvloop.Loop",
    hung=True,
    loop_stack=(
        Place("/srv/shop.py", 3, "<module>", "__main__"),
        Place("/srv/shop.py", 9, "block", "shop"),
        INNER,
    ),
    scopes=(
        ScopeNode(
            id=7,
            kind="http",
            request="r-1",
            route="/buy",
            seconds=3.0,
            left=27.0,
            cause="disconnect",
            over=False,
            leases=(Holder(None, "connection main", "/srv/shop.py:5 in buy", 2.5),),
        ),
    ),
    tasks=(
        task(1, Wait("tasks", "all of task-2 and task-3", seconds=1.0, at_least=True, on=(2, 3)), scope=7),
        task(2, Wait("sleep", "a timer", seconds=1.0, ends_in=4.0), scope=7),
        task(3, Wait("sleep", "a timer", seconds=2.0, ends_in=3.0), scope=7),
        task(4, wait(5, seconds=9.0)),
        task(5, wait(4, seconds=9.0)),
        task(6, None, state="running"),
    ),
    deadlocks=(Deadlock((4, 5)),),
    findings=(Finding("lost", 4, "waits for ever."),),
)


def test_a_snapshot_survives_the_socket():
    assert read_snapshot(map(orjson.loads, SNAPSHOT.lines())) == SNAPSHOT


def test_a_newer_version_may_say_more_and_an_older_one_less_than_needed():
    lines = [orjson.loads(line) for line in SNAPSHOT.lines()]
    lines[0]["snapshot"]["colour"] = "blue"
    lines[1]["scopes"]["colour"] = "blue"
    lines.append({"colours": {"blue": 1}})
    assert read_snapshot(lines) == SNAPSHOT
    with pytest.raises(ValueError, match="expected a Snapshot"):
        read_snapshot([])


def test_the_text_tells_what_is_wrong_first_and_draws_the_tasks_below_their_request():
    assert render(SNAPSHOT, name="shop").splitlines() == [
        "42 shop: 6 tasks, 1 scope, uvloop.Loop",
        "",
        "THE LOOP IS HUNG. Nothing below moves until its thread goes on, which stands at",
        "    /srv/shop.py:9 in block",
        "",
        "DEADLOCK of 2 tasks: they wait for each other",
        "    task-4 waits for a lock",
        "        /srv/shop.py:7 in buy",
        "    task-5 waits for a lock",
        "        /srv/shop.py:7 in buy",
        "",
        "lost: task-4 waits for ever.",
        "",
        "http /buy for 3.0 s, 27.0 s left, cancelled: disconnect",
        "    request r-1",
        "    has borrowed connection main for 2.5 s at /srv/shop.py:5 in buy",
        "  └─ task-1 has waited for at least 1.0 s for all of task-2 and task-3",
        "         /srv/shop.py:7 in buy",
        "       └─ task-3 has waited for 2.0 s for a timer; this ends in 3.0 s  (and 1 more like it)",
        "              /srv/shop.py:7 in buy",
        "",
        "task-4 has waited for 9.0 s for a lock  (and 1 more like it)",
        "    /srv/shop.py:7 in buy",
        "",
        "task-6 runs",
        "    /srv/shop.py:7 in buy",
    ]


def test_a_task_is_below_the_first_that_waits_for_it_else_below_the_one_that_has_started_it():
    tasks = [
        task(1, Wait("tasks", "both", on=(2, 3, 99))),
        task(2, Wait("sleep", "a timer"), parent=4),
        task(3, Wait("task", "the shared one", on=(2,))),
        task(4, Wait("lock", "a lock", on=(1,))),
        task(5, Wait("sleep", "a timer"), parent=4),
        task(6, Wait("task", "the other", on=(7,))),
        task(7, Wait("task", "the other", on=(6,))),
    ]
    roots, below = plant({each.id: each for each in tasks})
    assert [each.id for each in roots] == [1, 4]
    assert [(number, [each.id for each in parts]) for number, parts in below.items() if parts] == [
        *((1, [2, 3]), (4, [5])),
        *((6, [7]), (7, [6])),  # a ring
    ]


def test_a_chain_of_tasks_longer_than_the_stack_and_a_ring_are_drawn():
    many = sys.getrecursionlimit() + 100
    chain = [task(number, Wait("task", "the next", on=(number + 1,))) for number in range(many)]
    chain.append(task(many, Wait("task", "the first", on=(0,))))
    text = render(Snapshot(pid=1, loop="x", tasks=tuple(chain)))
    assert text.count("has waited for the next") == many
    assert "has waited for the first" in text
