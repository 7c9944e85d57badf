"""What is wrong, by a table; samples of several processes as one; rings that are bounded."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from freeloop.gate.admission import Admission
from freeloop.gate.limit import AdaptiveLimit
from freeloop.insights.answers import (
    Block,
    BlocksAnswer,
    Borrowed,
    BreakerState,
    PoolState,
    RouteLoad,
    Snapshot,
    UpstreamState,
)
from freeloop.insights.diagnosis import diagnose
from freeloop.insights.merge import merge, merge_samples
from freeloop.insights.process import Insights, Parts
from freeloop.insights.recorder import Gauges, Recorder, Sample, quantile
from freeloop.records import RequestRecord

USUAL = Sample(1, 10, 0, 0, 0.01, 0.02, 1, None, 0.0, 0, 3, 0, 0, 0)


def sample(at=1, **fields):
    return replace(USUAL, at=at, **fields)


def lease(route="/export", seconds=41.0, idle=None):
    return Borrowed("connection", "main", route, seconds, "app.py:7 in export", idle)


def pool(*, lent=3, waiting=2, leases=None):
    usual = (lease(), lease(seconds=2.0), lease("/other", 60.0))
    return PoolState(1, "main", 3, lent, 3 - lent, waiting, usual if leases is None else leases)


def block(*, goes_on):
    return Block(1, "app.py:3 in f", "/f", "waiting", "", 2, 0.8, 0.5, "", 0.0, 0.0, goes_on, ())


@pytest.mark.parametrize(
    ("snapshot", "said"),
    [
        (Snapshot(), []),
        (Snapshot(samples=(sample(),), pools=(pool(lent=3, waiting=0, leases=()),)), []),
        (Snapshot(silent=(7,)), [("silent", {"process": 7})]),
        (Snapshot(hung=(7,)), [("hung", {"process": 7})]),
        (Snapshot(deadlocks=((2, 5),)), [("deadlock", {"tasks": 2, "behind": 5})]),
        (Snapshot(unread="KeyError: 1"), [("unread", {"error": "KeyError: 1"})]),
        (Snapshot(blocks=(block(goes_on=True),)), [("blocking", {"route": "/f", "seconds": 0.5})]),
        (Snapshot(blocks=(block(goes_on=False),)), [("blocked", {"route": "/f", "times": 2})]),
        (Snapshot(pools=(pool(),)), [("pool_empty_by", {"route": "/export", "held": 2, "seconds": 41.0})]),
        (Snapshot(pools=(pool(leases=()),)), [("pool_empty", {"waiting": 2, "size": 3})]),
        (
            Snapshot(pools=(pool(lent=1, waiting=0, leases=(lease(idle=11.0),)),)),
            [("held_idle", {"seconds": 11.0})],
        ),
        (
            Snapshot(samples=(sample(shed=4, errors=4),), routes=(RouteLoad("/a", 5, 1, 5, 90, 4),)),
            [("shedding", {"route": "/a", "shed": 4, "limit": 5, "running": 5})],
        ),
        # Nothing was limited by the load: it is the limit of the settings.
        (
            Snapshot(routes=(RouteLoad("/a", 2, 0, None, 90, 4, full=True),)),
            [("full", {"route": "/a", "shed": 4})],
        ),
        # The overload has just gone, and its limit with it.
        (Snapshot(routes=(RouteLoad("/a", 2, 0, None, 4, 4),)), []),
        # Of two routes it is the one that refuses now, and not the one that did before, or is only limited.
        (
            Snapshot(routes=(RouteLoad("/a", 0, 0, None, 90), RouteLoad("/b", 2, 0, None, 4, 4, True))),
            [("full", {"route": "/b", "shed": 4})],
        ),
        (
            Snapshot(routes=(RouteLoad("/a", 5, 1, 5, 90), RouteLoad("/b", 2, 0, None, 4, 4, full=True))),
            [("full", {"route": "/b", "shed": 4})],
        ),
        (
            Snapshot(routes=(RouteLoad("/a", 5, 1, 5, 90), RouteLoad("/b", 3, 1, 3, 4, 4))),
            [("shedding", {"route": "/b", "shed": 4, "limit": 3})],
        ),
        (
            Snapshot(routes=(RouteLoad("/a", 5, 1, 5, 2, 2), RouteLoad("/b", 2, 0, None, 9, 9))),
            [("shedding", {"route": "/a", "shed": 2})],
        ),
        (
            Snapshot(breakers=(BreakerState("x", "x", "open", 3.0, 20, 20, 0),) * 2),
            [("breaker_open", {"upstream": "x", "seconds": 3.0})],
        ),
        (Snapshot(samples=(sample(errors=4),)), []),
        (
            Snapshot(samples=(sample(errors=5),), failed=(("/b", 5),)),
            [("failing", {"errors": 5, "requests": 10, "route": "/b"})],
        ),
        (Snapshot(task_failures=(("t", "ValueError", 3),)), [("tasks_failed", {"count": 3})]),
        (Snapshot(samples=(sample(tasks=9),), workers=0), [("no_worker", {"waiting": 9})]),
        (Snapshot(samples=(sample(tasks=9),), workers=None), []),
    ],
)
def test_what_is_wrong_is_said(snapshot, said):
    found = diagnose(snapshot)
    assert [each.code for each in found] == [code for code, _ in said]
    for sentence, (_, values) in zip(found, said, strict=True):
        assert values.items() <= sentence.values.items()


def test_the_worst_is_said_first():
    wrong = Snapshot(task_failures=(("t", "ValueError", 3),), hung=(1,))
    assert [each.severity for each in diagnose(wrong)] == ["bad", "warning"]


def open_insights(*loads):
    """Return the insights of a process that has these routes, of which each runs one request at once."""
    bulkheads = [SimpleNamespace(template=template, admission=admission) for template, admission in loads]
    gate = SimpleNamespace(bulkheads=bulkheads, running=0, websockets=0)
    nothing = lambda: None  # noqa: E731 - a part that is not there
    return Insights(Parts(lambda: gate, tuple, nothing, nothing, nothing, nothing, nothing))


def test_each_route_knows_what_it_refused_lately_and_why():
    policy = AdaptiveLimit()
    limited, other = Admission(policy, ceiling=1), Admission(AdaptiveLimit(), ceiling=1)
    insights = open_insights(("/limited", limited), ("/other", other))

    def read():
        return {load.route: (load.shed, load.lately, load.full) for load in insights.read_now().routes}

    def pass_seconds(count):
        for _ in range(count):
            insights._read_gauges()

    for _ in range(4):  # one is admitted
        limited.arrive(0.0)
        other.arrive(0.0)
    assert read() == {"/limited": (3, 0, False), "/other": (3, 0, False)}  # no second is over yet
    pass_seconds(1)
    limited.arrive(0.0)
    other.arrive(0.0)
    policy.limit = 1
    pass_seconds(1)
    policy.limit = None
    assert read() == {"/limited": (4, 1, False), "/other": (4, 1, True)}
    pass_seconds(9)
    assert read() == {"/limited": (4, 1, False), "/other": (4, 1, True)}
    pass_seconds(2)
    assert read() == {"/limited": (4, 0, False), "/other": (4, 0, False)}


def test_routes_of_several_processes_are_put_together():
    first = Snapshot(routes=(RouteLoad("/a", 2, 0, None, 9, 4, full=True),))
    second = Snapshot(routes=(RouteLoad("/a", 1, 1, None, 1, 1), RouteLoad("/b", 1, 0, None, 0)))
    idle = Snapshot(routes=(RouteLoad("/b", 1, 0, None, 2, 2),))  # its limit has just gone
    assert merge([first, second, idle]).routes == (
        RouteLoad("/a", 3, 1, None, 10, 5, full=True),
        RouteLoad("/b", 2, 0, None, 2, 2, full=False),
    )


def test_of_several_processes_too_what_blocked_for_longest_in_all_comes_first():
    often = replace(block(goes_on=False), seconds=9.0, longest=0.2)
    once = replace(block(goes_on=False), seconds=5.0, longest=5.0)
    assert merge([Snapshot(blocks=(once,)), Snapshot(blocks=(often,))]).blocks == (often, once)
    assert merge([BlocksAnswer((once,)), BlocksAnswer((often,))]).blocks == (often, once)


def test_samples_of_one_second_are_put_together():
    first = [sample(1, p50=0.1, requests=30, limit=4), sample(2, lag=0.5)]
    second = [sample(1, p50=0.5, requests=10, p99=3.0), sample(3)]
    merged = merge_samples([*first, *second])
    assert [each.at for each in merged] == [1, 2, 3]
    both = merged[0]
    assert (both.requests, both.pool, both.limit, both.p99) == (40, 6, 4, 3.0)
    assert both.p50 == pytest.approx(0.2)
    assert merged[1] is first[1]


def test_one_answer_is_itself():
    alone = Snapshot()
    assert merge([alone]) is alone


def test_the_recorder_keeps_no_more_than_it_may():
    recorder = Recorder(lambda: Gauges(0, 0, None, 0.0, 0, 0, 0, 0, None))
    for number in range(5_000):
        recorder.observe(RequestRecord(str(number), "GET", "/", "/", 500 if number % 2 else 200, 2.0, ""))
    assert len(recorder.failed) == len(recorder.slow) == 100
    assert recorder.failed[-1].record.request_id == "4999"
    assert len(recorder._latencies) == 1_000


def test_quantiles():
    assert quantile([], 0.5) is None
    assert quantile([1.0], 0.99) == 1.0
    assert quantile([float(each) for each in range(100)], 0.5) == 50.0
    assert quantile([float(each) for each in range(100)], 0.99) == 99.0


def test_shared_calls_are_a_part_of_all_that_needed_an_answer():
    source = UpstreamState(
        *(1, "prices", 13, None, 0, 0, 0), retries=2, hedges=1, shared=10, hits=5, misses=20, breakers=()
    )
    assert source.calls == 20
    assert replace(source, retries=None, hedges=None, shared=None).calls == 13


@pytest.mark.parametrize("late", [-0.0004, 0.0, 0.3])
def test_each_second_has_one_sample_also_where_timers_end_early(monkeypatch, late):
    recorder = Recorder(lambda: Gauges(0, 0, None, 0.0, 0, 0, 0, 0, None))
    timers = []
    recorder._loop = SimpleNamespace(call_later=lambda seconds, call: timers.append((seconds, call)))
    clock = SimpleNamespace(now=100.25, time=lambda: clock.now)
    monkeypatch.setattr("freeloop.insights.recorder.time", clock)
    recorder._set_timer()
    for _ in range(20):
        seconds, call = timers.pop()
        clock.now += max(0.0, seconds + late)
        call()
    assert [each.at for each in recorder.samples] == [*range(101, 121)]
    clock.now = 50.5  # it was set back
    recorder._set_timer()
    assert 0 < timers.pop()[0] <= 1
