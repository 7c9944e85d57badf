"""The decisions of durable tasks, without any I/O: ticks, who is dead, when to try again, what fits."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloop.tasks.ids import make_id, oldest_id
from freeloop.tasks.liveness import Liveness
from freeloop.tasks.retry import NoRetry, Retry, RetryPolicy
from freeloop.tasks.ticks import MOST, Rule, find_due

ZURICH = ZoneInfo("Europe/Zurich")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def ticks(rule, moment, count):
    found = []
    for _ in range(count):
        moment = rule.after(moment)
        found.append(moment.isoformat())
    return found


def test_a_tick_in_the_missing_hour_comes_at_its_end():
    rule = Rule("30 2 * * *", zone="Europe/Zurich")
    assert ticks(rule, datetime(2026, 3, 28, 12, tzinfo=ZURICH), 2) == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_a_tick_in_the_doubled_hour_comes_once():
    rule = Rule("30 2 * * *", zone="Europe/Zurich")
    assert ticks(rule, datetime(2026, 10, 24, 12, tzinfo=ZURICH), 2) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]


def test_ticks_of_every_hour_come_in_both_of_the_doubled_ones():
    rule = Rule("0 * * * *", zone="Europe/Zurich")
    assert ticks(rule, datetime(2026, 10, 25, 1, 30, tzinfo=ZURICH), 3) == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:00:00+01:00",
        "2026-10-25T03:00:00+01:00",
    ]


def test_seconds_are_counted_whatever_the_clocks_on_the_wall_show():
    rule = Rule(every=3600)
    assert rule.after(datetime(2026, 10, 25, 0, 30, tzinfo=UTC)) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("catch_up", "late", "count"),
    [("latest", 7200, 1), ("all", 7200, 3), ("skip", 7200, 0), ("skip", 10, 1), ("all", -1, 0)],
)
def test_what_is_caught_up_with(catch_up, late, count):
    rule = Rule("0 * * * *")
    now = NOON + timedelta(seconds=late)
    if catch_up == "skip" and late > 100:
        now += timedelta(minutes=5)  # the latest tick was missed too
    due, upcoming = find_due(rule, NOON, now, catch_up)
    assert len(due) == count
    assert upcoming > now
    assert upcoming - now <= timedelta(hours=1)


@given(st.floats(1, 1e5), st.floats(0, 1e8), st.sampled_from(["skip", "latest", "all"]))
def test_catching_up_is_bounded_and_goes_past_now(every, late, catch_up):
    now = NOON + timedelta(seconds=late)
    due, upcoming = find_due(Rule(every=every), NOON, now, catch_up)
    assert upcoming > now
    assert len(due) <= MOST
    assert due == sorted(due)
    assert all(tick <= now for tick in due)
    if catch_up == "latest":
        assert len(due) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "either cron or every"),
        ({"cron": "* * * * *", "every": 5}, "either cron or every"),
        ({"cron": "61 * * * *"}, "expected a cron expression"),
        ({"every": 0.5}, "1 second or more"),
        ({"cron": "* * * * *", "zone": "Mars/Olympus"}, "no time zone 'Mars/Olympus'"),
    ],
)
def test_a_rule_that_is_wrong_says_so(wrong, message):
    with pytest.raises(ValueError, match=message):
        Rule(**wrong)


def test_who_is_silent_for_the_timeout_is_dead_and_who_beats_is_not():
    liveness = Liveness(4.0, gap=2.0)
    silent, beating = uuid4(), uuid4()
    for now in range(4):
        assert liveness.look(now, {silent: 7, beating: now}) == []
    assert liveness.look(4, {silent: 7, beating: 4}) == [silent]


def test_nobody_is_dead_for_what_happened_while_the_observer_was_away():
    liveness = Liveness(4.0, gap=2.0)
    worker = uuid4()
    assert liveness.look(0, {worker: 1}) == []
    assert liveness.look(60, {worker: 1}) == []  # the database was down: the worker could not beat either
    for now in (61, 62, 63):
        assert liveness.look(now, {worker: 1}) == []
    assert liveness.look(64, {worker: 1}) == [worker]


@given(st.lists(st.tuples(st.floats(0.1, 5), st.booleans()), max_size=60))
def test_only_the_observers_clock_and_the_count_decide(steps):
    liveness = Liveness(4.0, gap=2.0)
    worker, now, count, since = uuid4(), 0.0, 0, None
    for pause, beats in steps:
        now += pause
        count += beats
        if beats or pause > 2.0 or since is None:
            since = now
        assert liveness.look(now, {worker: count}) == ([worker] if now - since >= 4.0 else [])


def test_pauses_double_up_to_the_longest_and_differ():
    policy = RetryPolicy(retries=10, base=1.0, longest=10.0)
    for failures, longest in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (10, 10)]:
        pauses = [policy.pause(ValueError(), failures=failures, dice=dice / 50) for dice in range(50)]
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(set(pauses)) > 1
    assert policy.pause(ValueError(), failures=11, dice=0) is None


def test_what_decides_about_a_further_execution():
    policy = RetryPolicy(retries=2, never=(LookupError,))
    assert policy.pause(Retry(after=7), failures=1, dice=0) == 7
    assert policy.pause(Retry(after=7), failures=3, dice=0) is None
    assert policy.pause(NoRetry(), failures=1, dice=0) is None
    assert policy.pause(KeyError(), failures=1, dice=0) is None
    assert RetryPolicy(retries=None).pause(ValueError(), failures=10**6, dice=0) == 150
    assert RetryPolicy(retries=0).pause(ValueError(), failures=1, dice=0) is None


def test_ids_are_in_the_order_of_time_and_uuids_of_version_7():
    ids = [make_id() for _ in range(1000)]
    assert [each.version for each in ids] == [7] * 1000
    assert ids[0].variant == UUID(int=2 << 62).variant
    assert [each.int >> 64 for each in ids] == sorted(each.int >> 64 for each in ids)
    assert len(set(ids)) == 1000
    moment = (ids[0].int >> 80) / 1000
    assert oldest_id(moment - 0.002) < ids[0] < oldest_id(moment + 1)
