"""The state machine: who may run, who waits, who is shed."""

import timeit

import pytest

from freeloop.gate.admission import Admission, Verdict
from freeloop.gate.limit import AdaptiveLimit


class Fixed(AdaptiveLimit):
    """Sets its limit at the first decision."""

    def __init__(self, limit, *, queue=2):
        super().__init__()
        self.limit_then, self.queue, self.wait = limit, queue, 0.05

    @property
    def baseline(self):
        return 0.1

    def decide(self, window):
        self.window = window
        self.limit = self.limit_then
        self.needed = 1_000_000  # and stays there
        return True


def limited(limit, *, queue=2, now=1.0):
    """An admission under a limit, with nobody in it."""
    admission = Admission(Fixed(limit, queue=queue))
    for _ in range(10):
        assert admission.arrive(0.0) is Verdict.ADMIT
    for _ in range(10):
        admission.leave(now, now)
    assert admission.limit == limit
    assert admission.running == 0
    return admission


def test_without_a_limit_everybody_runs_up_to_the_ceiling():
    admission = Admission(AdaptiveLimit(), ceiling=3)
    assert [admission.arrive(0.0) for _ in range(4)] == [Verdict.ADMIT] * 3 + [Verdict.SHED]
    assert (admission.running, admission.waiting, admission.shed) == (3, 0, 1)
    assert admission.limit is None


def test_above_the_limit_some_wait_and_the_others_are_shed():
    admission = limited(2)
    verdicts = [admission.arrive(1.1) for _ in range(6)]
    assert verdicts == [Verdict.ADMIT] * 2 + [Verdict.WAIT] * 2 + [Verdict.SHED] * 2
    assert (admission.running, admission.waiting, admission.shed) == (2, 2, 2)
    assert admission.wait_limit == 0.05


def test_who_leaves_makes_way_for_one_that_waits():
    admission = limited(2)
    for _ in range(4):
        admission.arrive(1.1)
    assert admission.leave(1.2, 0.1) == 1
    admission.promote()
    assert (admission.running, admission.waiting) == (2, 1)
    assert admission.leave(1.3, None) == 1
    admission.abandon()
    assert admission.leave(1.4, 0.1) == 0
    assert (admission.running, admission.waiting) == (0, 0)


def test_nobody_overtakes_one_that_waits():
    admission = limited(2)
    for _ in range(3):
        admission.arrive(1.1)
    admission.leave(1.2, 0.1)  # a place is free, and belongs to the one that waits
    assert admission.arrive(1.2) is Verdict.WAIT


def test_nobody_waits_for_somebody_to_leave_when_nobody_runs():
    admission = limited(1)
    admission.arrive(1.1)
    assert admission.arrive(1.1) is Verdict.WAIT
    assert admission.leave(1.2, 0.1) == 1
    # Its client has gone in this moment, and the one that waits with it has not yet said so.
    assert admission.arrive(1.2) is Verdict.ADMIT


def test_the_ceiling_holds_under_a_higher_limit():
    admission = Admission(Fixed(50), ceiling=10)
    for _ in range(10):
        admission.arrive(0.0)
    for _ in range(10):
        admission.leave(1.0, 1.0)
    verdicts = [admission.arrive(1.1) for _ in range(20)]
    assert verdicts.count(Verdict.ADMIT) == 10


def test_a_limit_that_nobody_reaches_is_lifted():
    admission = limited(2)
    assert admission.arrive(1.0 + 4.9) is Verdict.ADMIT
    assert admission.limit == 2
    assert admission.arrive(1.0 + 5.1) is Verdict.ADMIT
    assert admission.limit is None
    assert [admission.arrive(6.2) for _ in range(100)] == [Verdict.ADMIT] * 100


def test_a_limit_that_is_reached_stays():
    admission = limited(1)
    admission.arrive(1.0)
    for second in range(1, 20):
        assert admission.arrive(float(second)) is not Verdict.ADMIT
    assert admission.limit == 1


def test_those_who_wait_when_the_limit_is_lifted_do_not_block_the_others():
    admission = limited(1)
    admission.arrive(1.1)
    assert admission.arrive(1.1) is Verdict.WAIT
    assert admission.arrive(60.0) is Verdict.ADMIT
    assert admission.limit is None
    assert admission.leave(60.1, None) == 1


def test_latencies_of_before_the_limit_changed_are_kept_apart():
    class Recording(AdaptiveLimit):
        def __init__(self):
            super().__init__()
            self.seen = []

        def decide(self, window):
            self.seen.append(window)
            self.limit = 100
            return True

    policy = Recording()
    admission = Admission(policy)
    for _ in range(40):
        admission.arrive(0.0)
    for _ in range(10):
        admission.leave(1.0, 1.0)  # sets the limit
    for _ in range(30):
        admission.leave(3.0, 3.0)
    for _ in range(10):
        admission.arrive(3.0)
    for _ in range(10):
        admission.leave(3.1, 0.1)
    assert [window.count for window in policy.seen] == [10, 10]
    assert policy.seen[1].mean == pytest.approx(0.1)
    assert policy.seen[1].earlier_mean == pytest.approx(3.0)


@pytest.mark.parametrize(("arrivals", "least", "most"), [(1, 1, 1), (30, 2, 10), (2000, 30, 30)])
def test_retry_after_grows_with_the_load_and_stays_within_half_a_minute(arrivals, least, most):
    admission = limited(2)
    for _ in range(4):
        admission.arrive(1.1)
    for _ in range(4):
        admission.leave(1.2, 0.1)
    for _ in range(arrivals):
        admission.arrive(1.3)
    assert least <= admission.retry_after <= most


def test_it_costs_next_to_nothing_while_there_is_no_limit():
    admission = Admission(AdaptiveLimit())
    count, now = 20_000, iter(range(10**9))

    def one():
        moment = next(now) / 2000
        admission.arrive(moment)
        admission.leave(moment, 0.002)

    # Both together, with room for a slow machine: about 0.6 µs where this was written.
    assert min(timeit.repeat(one, number=count, repeat=5)) / count < 5e-6
    assert admission.limit is None
