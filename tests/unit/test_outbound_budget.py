"""The budget that retries and hedges share, the window under it, and what is kept for each source."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloop.outbound.budget import RetryBudget
from freeloop.outbound.sources import Sources
from freeloop.outbound.transport import origin_of
from freeloop.outbound.window import Window
from virtual_time import call

SECONDS = 10.0
gaps = st.floats(0, 3) | st.just(0.0) | st.floats(5, 60)


@given(st.lists(st.tuples(gaps, st.integers(0, 30), st.integers(0, 5)), max_size=60))
def test_a_window_counts_what_came_in_it_to_within_a_tenth(steps):
    window, now, came = Window(SECONDS, 2), 0.0, []
    for gap, calls, extra in steps:
        now += gap
        for kind, count in enumerate((calls, extra)):
            for _ in range(count):
                window.add(now, kind)
                came.append((now, kind))
        window.move(now)
        for kind in (0, 1):
            surely = sum(when > now - 0.9 * SECONDS + 1e-6 for when, k in came if k == kind)
            perhaps = sum(when > now - SECONDS - 1e-6 for when, k in came if k == kind)
            assert surely <= window.totals[kind] <= perhaps


@given(st.lists(st.tuples(gaps, st.booleans()), max_size=100))
def test_what_is_taken_back_was_never_counted(steps):
    window, plain, now, receipts = Window(SECONDS, 1), Window(SECONDS, 1), 0.0, []
    for gap, back in steps:
        now += gap
        if back:
            receipts.append(window.add(now, 0))
        else:
            window.add(now, 0)
            plain.add(now, 0)
    for receipt in receipts:
        window.take_back(receipt, 0)
    window.move(now)
    plain.move(now)
    assert window.totals == plain.totals


@given(
    st.floats(0, 0.5),
    st.floats(0, 2),
    st.lists(st.tuples(gaps, st.integers(0, 50), st.integers(0, 20)), max_size=60),
)
def test_extra_attempts_stay_within_the_share_in_any_stretch_of_time(share, minimum, steps):
    budget, now, calls, extra = RetryBudget(share=share, minimum=minimum), 0.0, [], []
    for gap, arriving, wanted in steps:
        now += gap
        for _ in range(arriving):
            budget.deposit(now)
            calls.append(now)
        extra += [now] * sum(budget.withdraw(now) is not None for _ in range(wanted))
    reserve = minimum * SECONDS
    for start in {0.0, *extra}:
        taken = sum(when >= start for when in extra)
        # A stretch of any length is windows end to end; the first may begin before it. What the budget counts
        # is forgotten in tenths of a window, so one is 9 s at least.
        windows = (now - start) // (0.9 * SECONDS - 1e-6) + 1
        earned = share * sum(when >= start - SECONDS for when in calls)
        assert taken <= earned + reserve * windows + 1e-6


def test_under_load_the_reserve_adds_nothing_to_the_share():
    budget = RetryBudget()
    granted = 0
    for tick in range(60_000):  # 10 min of 100 calls a second, each of which wants to go again
        budget.deposit(tick / 100)
        granted += budget.withdraw(tick / 100) is not None
    assert 5_900 <= granted <= 6_000
    assert budget.refused == 60_000 - granted


def test_a_call_a_minute_may_always_be_repeated():
    budget = RetryBudget()
    for minute in range(100):
        budget.deposit(60.0 * minute)
        assert budget.withdraw(60.0 * minute) is not None
        assert budget.withdraw(60.0 * minute + 1) is not None


def test_a_refund_makes_room_for_exactly_one():
    budget = RetryBudget(share=0, minimum=0.1)
    receipt = budget.withdraw(0.0)
    assert budget.withdraw(1.0) is None
    budget.refund(receipt)
    assert budget.withdraw(1.0) is not None
    assert budget.withdraw(1.0) is None


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Prices.example/a/b?c=http://x/y", "https://prices.example"),
        ("http://user:se/cret@h:8080/", "http://user:se"),  # malformed: refused later, and never a secret
        ("http://user:secret@h:8080/a@b", "http://h:8080"),
        ("http://h?q=a@b", "http://h"),
        ("http://[::1]:80#x", "http://[::1]:80"),
    ],
)
def test_the_origin_of_a_url(url, origin):
    assert origin_of(url) == origin


def test_sources_are_kept_by_name_else_by_origin_and_the_longest_unused_goes():
    sources = Sources(lambda name: [name], most=2)
    prices = sources.of(call())
    other = sources.of(call(source=None, url="http://a/1"))
    assert sources.of(call(source=None, url="http://a/2")) is other
    assert sources.of(call(url="http://elsewhere/")) is prices
    sources.of(call(source="third"))
    assert [name for name, _ in sources] == ["prices", "third"]


def test_sources_in_use_are_not_dropped():
    sources = Sources(lambda name: [name], most=1, spare=lambda policy: policy != ["busy"])
    busy = sources.of(call(source="busy"))
    for number in range(100):
        sources.of(call(source=f"other {number}"))
    assert sources.of(call(source="busy")) is busy
    assert len(sources) <= 2


def test_hedges_leave_half_to_retries():
    budget = RetryBudget(share=0.1, minimum=0)
    for _ in range(200):
        budget.deposit(0.0)
    assert sum(budget.withdraw(0.0, part=0.5) is not None for _ in range(100)) == 10
    assert sum(budget.withdraw(0.0) is not None for _ in range(100)) == 10
