"""Shared reads without a database: who joins which query, and which reads are the same."""

import copy
import heapq
import random
import traceback
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from itertools import count

import asyncpg
import pytest
from asyncpg.pgproto import pgproto
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloop.database.departures import Departures
from freeloop.database.identity import identify
from freeloop.errors import DatabaseUnavailable, NotFound, UpstreamStatus, duplicate
from linearizability import History

# ---------------------------------------------------------------- who joins which query


class Simulation:
    """Counters that writers raise and readers read through a policy, in simulated time."""

    def __init__(self, departures):
        self.departures = departures
        self.histories = {}
        self.values = {}
        self.started = []
        self.answered = self.left = 0
        self._events = []
        self._order = count()

    def at(self, when, action):
        heapq.heappush(self._events, (when, next(self._order), action))

    def run(self):
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def history(self, key):
        return self.histories.setdefault(key, History())

    def write(self, key, takes, acknowledged):
        begun = self.history(key).begin()

        def commit():
            value = self.values[key] = self.values.get(key, 0) + 1
            self.at(self.now + acknowledged, lambda: self.history(key).end("write", value, begun))

        self.at(self.now + takes, commit)

    def read(self, key, delays, patience):
        begun = self.history(key).begin()
        flight, starts = self.departures.join(key, delays)

        def answer(value):
            if answer in flight.seats:
                self.answered += 1
                self.history(key).end("read", value, begun)

        def leave():
            if not flight.over and answer in flight.seats:
                self.left += 1
                self.start(self.departures.leave(flight, answer))

        flight.seats.add(answer)
        if starts or flight.alone:
            self.start(flight)
        if patience is not None:
            self.at(self.now + patience, leave)

    def start(self, flight):
        if flight is None:
            return
        assert flight not in self.started
        self.started.append(flight)
        connecting, sending, answering = flight.query

        def depart():
            if not flight.over:
                self.departures.depart(flight)
                self.at(self.now + sending, look)

        def look():
            value = self.values.get(flight.key, 0)
            self.at(self.now + answering, lambda: land(value))

        def land(value):
            if not flight.over:
                self.start(self.departures.end(flight))
                for seat in tuple(flight.seats):
                    seat(value)

        self.at(self.now + connecting, depart)


def draw(seed):
    """Reads and writes, so many and so close together that they meet in every way."""
    rng = random.Random(seed)  # noqa: S311 - traffic, no secret
    span = rng.choice([5, 20, 40])

    def patience():
        return rng.choice([None, None, rng.randrange(10)])

    def short():
        return rng.randrange(5)

    reads = [
        (rng.randrange(span), rng.randrange(2), (short(), short(), short()), patience())
        for _ in range(rng.randrange(60))
    ]
    writes = [(rng.randrange(span), rng.randrange(2), short(), short()) for _ in range(rng.randrange(40))]
    return reads, writes


def simulate(departures, reads, writes):
    simulation = Simulation(departures)
    for when, *rest in reads:
        simulation.at(when, lambda rest=rest: simulation.read(*rest))
    for when, *rest in writes:
        simulation.at(when, lambda rest=rest: simulation.write(*rest))
    simulation.run()
    return simulation


def is_linearizable(simulation):
    return all(history.find_violation() is None for history in simulation.histories.values())


def test_every_read_sees_what_was_acknowledged_before_it_asked():
    for seed in range(1_000):
        reads, writes = draw(seed)
        simulation = simulate(Departures(), reads, writes)
        assert is_linearizable(simulation), seed
        assert simulation.answered + simulation.left == len(reads)
        assert not simulation.departures.flights()


class LateBoarding(Departures):
    """What most single-flight code does: whoever asks while a query runs gets its answer."""

    def depart(self, flight):
        if flight.over or flight.alone:
            super().depart(flight)


def test_chance_finds_a_caller_that_is_let_onto_a_query_that_was_sent():
    assert not all(is_linearizable(simulate(LateBoarding(), *draw(seed))) for seed in range(1_000))


def test_a_caller_that_is_let_onto_a_query_that_was_sent_is_found_out():
    # Alone; then a flight that is sent at 3 and sees nothing; a write; a reader that asks after the write.
    slow = (0, 0, 5)
    reads = [(0, 0, (0, 1, 2), None), (1, 0, slow, None), (6, 0, slow, None)]
    writes = [(4, 0, 0, 1)]
    assert simulate(Departures(), reads, writes).histories[0].find_violation() is None
    stale, _ = simulate(LateBoarding(), reads, writes).histories[0].find_violation()
    assert (stale.kind, stale.value) == ("write", 1)


def test_all_that_ask_while_one_query_runs_share_the_next():
    reads = [(0, 0, (0, 1, 5), None), *((1 + index % 5, 0, (0, 1, 5), None) for index in range(1_000))]
    simulation = simulate(Departures(), reads, [])
    assert len(simulation.started) == 2
    assert simulation.answered == 1_001


def test_who_waits_for_a_connection_is_not_waited_for():
    departures = Departures()
    alone, _ = departures.join("key", 1)
    shared, starts = departures.join("key", 2)
    assert alone.alone
    assert starts
    assert departures.join("key", 3) == (shared, False)
    assert departures.end(alone) is None
    departures.depart(shared)
    late, starts = departures.join("key", 4)
    assert late is not shared
    assert not starts
    assert departures.end(shared) is late


def test_the_next_query_starts_when_the_last_caller_of_the_one_before_leaves():
    departures = Departures()
    departures.depart(departures.join("key", 1)[0])
    first, _ = departures.join("key", 2)
    first.seats = {"a", "b"}
    (running,) = departures.flights() - {first}
    assert departures.end(running) is first
    departures.depart(first)
    second, _ = departures.join("key", 3)
    second.seats = {"c"}
    assert departures.leave(first, "a") is None
    assert not first.over
    assert departures.leave(first, "b") is second
    assert first.over
    assert departures.end(first) is None
    assert departures.leave(second, "c") is None
    assert not departures.flights()


def test_a_million_different_reads_leave_nothing_behind():
    departures = Departures()
    for key in range(1_000_000):
        flight, _ = departures.join(key, None)
        departures.depart(flight)
        assert departures.end(flight) is None
    assert all(len(kept) == 0 for kept in vars(departures).values())


# ---------------------------------------------------------------- which reads are the same


class Colour(Enum):
    RED = 1
    BLUE = 2


class Level(IntEnum):
    ONE = 1


class Opaque:
    """Equal to all of its kind, whatever it holds."""

    def __eq__(self, other):
        return isinstance(other, Opaque)

    __hash__ = None


def first(rows):
    return rows[0]


@dataclass(frozen=True)
class Take:
    number: int

    def __call__(self, rows):
        return tuple(rows[: self.number])


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_ELSEWHERE = NOON.astimezone(timezone(timedelta(hours=13)))


@pytest.mark.parametrize(
    "value",
    [
        None, True, 1, "1", b"1", 1.5, float("inf"), Decimal("1.50"), NOON, time(12), Colour.RED,
        date(2026, 1, 1), timedelta(1), uuid.UUID(int=1), [1, [2, None]], (1, 2),
        {"a": [1], "b": {"c": 1.5}}, {1, 2}, [], {},
    ],
)  # fmt: skip
def test_equal_values_make_the_same_read(value):
    assert identify("s", (value, 1), None) == identify("s", (copy.deepcopy(value), 1), None) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True), (1, 1.0), (1, Decimal(1)), (1, "1"), ("1", b"1"), (0.0, -0.0), (0, None), (1, Level.ONE),
        (Decimal("1.0"), Decimal("1.00")), (Decimal(0), Decimal("-0")), (NOON, NOON_ELSEWHERE),
        (NOON.replace(tzinfo=None), NOON.replace(tzinfo=None, fold=1)), (NOON, NOON.replace(tzinfo=None)),
        (time(12, tzinfo=UTC), time(13, tzinfo=timezone(timedelta(hours=1)))), (Colour.RED, Colour.BLUE),
        (uuid.UUID(int=1), pgproto.UUID(uuid.UUID(int=1).bytes)),
        ([1], (1,)), ([1], [True]), ([1], [1.0]),
        ([0.0], [-0.0]), ([[1]], [[1], []]), ([1, 2], [2, 1]), ({"a": 1}, {"a": 1.0}), ({"a": 1}, {"b": 1}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ([], {}), ([None], []),
    ],
)  # fmt: skip
def test_values_that_postgresql_may_answer_differently_make_two(one, other):
    for wrap in (lambda value: value, lambda value: [value], lambda value: {"k": [value]}):
        ours, theirs = identify("s", (wrap(one),), None), identify("s", (wrap(other),), None)
        assert None not in {ours, theirs}
        assert ours != theirs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.decimals(-1, 1) | st.text("ab"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(JSON, JSON)
def test_two_reads_are_the_same_where_their_arguments_look_the_same(one, other):
    assert (identify("s", (one,), None) == identify("s", (other,), None)) == (repr(one) == repr(other))


def test_what_cannot_be_compared_is_not_shared():
    endless = []
    endless.append(endless)
    for value in (Opaque(), endless, object(), asyncpg.Range(1, 2), [object()], bytearray(b"a"), first):
        assert identify("s", (value,), None) is None
    assert identify("s", (1,), Opaque()) is None


def test_statement_and_encode_belong_to_the_identity():
    def make():
        return lambda rows: rows[0]

    def capture(number):
        return lambda rows: rows[number]

    def same(one, other):
        return identify("s", (1,), one) == identify("s", (1,), other)

    assert identify("s", (1,), None) != identify("t", (1,), None)
    assert identify("s", (1, 2), None) != identify("s", (1,), None)
    assert same(first, first)
    assert same(make(), make()) or make() is make()
    assert same(Take(1), Take(1))
    assert not same(Take(1), Take(2))
    assert not same(capture(1), capture(1))
    assert not same(first, None)
    assert not same(first, make())


# ---------------------------------------------------------------- errors for several


class Stubborn(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.two = two

    def __new__(cls, *args):
        if len(args) != 2:
            raise ValueError
        return super().__new__(cls, *args)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", 1),
        DatabaseUnavailable("gone", retry_after=7),
        NotFound("title", "detail"),
        UpstreamStatus("bad", upstream_status=500, source="s"),
        asyncpg.UniqueViolationError("twice"),
        OSError(2, "no file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        ExceptionGroup("several", [ValueError(1)]),
    ],
)
def test_a_duplicate_says_the_same_and_has_a_traceback_of_its_own(error):
    def fail(error):
        raise error

    with pytest.raises(type(error)) as caught:
        fail(error)
    error.__cause__ = KeyError("why")
    twin = duplicate(error)
    assert twin is not error
    assert type(twin) is type(error)
    assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))
    assert twin.__cause__ is error.__cause__
    before = traceback.format_tb(error.__traceback__)
    for _ in range(3):
        with pytest.raises(type(error)):
            raise twin
    assert traceback.format_tb(error.__traceback__) == before
    assert "fail" in "".join(traceback.format_tb(twin.__traceback__))
    assert caught.value is error


def test_an_error_that_cannot_be_duplicated_is_still_told():
    error = Stubborn(1, 2)
    assert duplicate(error) is error
