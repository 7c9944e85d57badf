"""The chaos run of ``task_chaos``, for two minutes: each committed start comes to its end, once in effect."""

import pytest
from task_chaos import run


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_is_committed_runs_once_whatever_is_killed():
    kills, faults = run(10_000, seed=None, within=500)
    assert not faults, "\n".join(faults[:20])
    assert kills["worker"] > 3
    assert kills["starter"] + kills["postgresql"] > 1
