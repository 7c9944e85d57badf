"""How fresh a replica is: decided on numbers alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloop.database.freshness import NEVER, Timeline, find_end, judge, summarize


@given(st.lists(st.integers(0, 20), max_size=30), st.integers(0, 200))
def test_everything_before_the_moment_that_is_found_has_been_replayed(steps, replayed):
    timeline, position, looks = Timeline(), 0, []
    for moment, step in enumerate(steps):
        position += step
        timeline.add(moment, position)
        looks.append((moment, position))
    expected = max((moment for moment, position in looks if position <= replayed), default=NEVER)
    assert timeline.find_moment(replayed) == expected


def test_another_primary_that_was_behind_says_nothing_about_the_one_before():
    timeline = Timeline()
    timeline.add(1.0, 500)
    timeline.add(2.0, 400)
    assert timeline.find_moment(450) == 2.0
    assert timeline.find_moment(399) == NEVER


def test_it_keeps_no_more_than_three_hundred_looks():
    timeline = Timeline()
    for moment in range(1000):
        timeline.add(moment, moment)
    assert timeline.find_moment(699) == NEVER
    assert timeline.find_moment(700) == 700


@pytest.mark.parametrize(
    ("position", "end"),
    [(8192, 8192), (8192 + 24, 8192), (8192 + 40, 8192), (8192 + 48, 8192 + 48), (16383, 16383)],
)
def test_the_header_of_a_page_is_no_part_of_a_record(position, end):
    assert find_end(position, 8192) == end


@pytest.mark.parametrize(
    ("fresh", "wrote", "now", "verdict"),
    [
        (100.0, NEVER, 100.0, "fresh"),
        (95.0, NEVER, 100.0, "fresh"),
        (89.9, NEVER, 100.0, "behind"),
        (99.0, 98.9, 100.0, "fresh"),
        (99.0, 99.0, 100.0, "fresh"),
        (99.0, 99.1, 100.0, "wrote"),
        (80.0, 99.0, 100.0, "behind"),
        (NEVER, NEVER, 100.0, "behind"),
        (100.0, math.inf, 100.0, "wrote"),
    ],
)
def test_who_may_read_there(fresh, wrote, now, verdict):
    assert judge(fresh, wrote=wrote, now=now, max_lag=10.0) == verdict


def test_a_writer_is_no_fall_back_where_a_replica_could_answer_others():
    assert summarize(["behind", "wrote"]) == "wrote"
    assert summarize(["behind"]) == summarize([]) == "behind"
