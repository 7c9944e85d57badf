"""What the watchdog decides, without I/O: a block or none, its cause, its line."""

import pytest

from freeloop.watch.advice import advise
from freeloop.watch.backstop import parse
from freeloop.watch.blame import Blamed
from freeloop.watch.findings import Finding, Findings, Ignored
from freeloop.watch.place import find_place
from freeloop.watch.sample import Sample
from freeloop.watch.stack import Line
from freeloop.watch.starvation import find_starvation
from freeloop.watch.verdict import Evidence, Starved, judge

HERE = Line("/app/shop.py", 12, "build")
THERE = Line("/app/shop.py", 40, "list_all")


def sample(at, *, seconds=0.02, cpu=0.0, place=HERE, step=1, route="/build", started=0.0):
    return Sample(at, seconds, cpu, (place,), place, step, Blamed(route, "r", "http", started), ())


def evidence(length, **seen):
    """What was seen in so many seconds; the next heartbeat was due after 0.02."""
    given = {"loop": 0.0, "samples": [sample(at / 100) for at in range(5, int(length * 100), 2)], **seen}
    return Evidence(0.0, length, 0.02, **given)


def starved(end, *, advanced=0.25, ran=True, loop=0.0, others=None):
    return Starved(0.05, end, advanced * end / 0.3, ran, loop, others or {})


@pytest.mark.parametrize(
    ("length", "seen", "cause"),
    [
        (0.3, {}, "waiting"),
        (0.3, {"loop": 0.28}, "computing"),
        (0.3, {"loop": 0.28, "starved": [starved(0.3, loop=0.2)]}, "gil"),
        (0.3, {"loop": 0.0, "starved": [starved(0.3, advanced=0.0)]}, "gil"),  # it waits in C
        (0.3, {"samples": [], "starved": [starved(0.3, others={7: 0.2, 8: 0.0})]}, "thread"),
        # On a crowded machine the watchdog does not get to run either where whoever has the GIL has no CPU.
        (0.9, {"loop": 0.28, "delayed": 0.6, "starved": [starved(0.9)]}, "computing"),
        # And where that is the watchdog itself, the loop waits for it.
        (0.9, {"loop": 0.28, "delayed": 0.2, "waited": 0.4}, "computing"),
        (0.9, {"loop": 0.02, "delayed": 0.1, "waited": 0.7}, "waiting"),
        (0.9, {"samples": [], "waited": 0.5, "starved": [starved(0.9, others={7: 0.15})]}, "thread"),
        (0.105, {}, None),  # it may have begun only when the heartbeat was due
        (0.3, {"samples": []}, None),  # nobody knows what it was
        (4.0, {"samples": [], "starved": [starved(4.0, advanced=0.0, ran=False)]}, None),  # stopped
        (0.3, {"loop": 0.01, "delayed": 0.02}, "waiting"),
        (0.3, {"loop": 0.09, "delayed": 0.2}, None),  # it had to wait for a CPU
        (0.3, {"loop": 0.027, "delayed": 0.272, "waited": 0.224}, None),  # for a tenth of one is all it has
        (0.13, {"loop": 0.001, "delayed": 0.01}, "waiting"),  # that was before
        (0.13, {"loop": 0.001, "delayed": 0.04}, None),
        (0.3, {"loop": 0.09, "delayed": 0.09}, None),  # and was stopped, too shortly to be seen each time
    ],
)
def test_the_clocks_tell_what_held_the_loop_up(length, seen, cause):
    block = judge(evidence(length, **seen), 0.1)
    assert (block and block.cause) == cause


def test_a_request_that_has_begun_since_narrows_the_time_down():
    early, late = (
        judge(evidence(0.125, samples=[sample(0.1, started=started)]), 0.11) for started in (0.001, 0.02)
    )
    assert early is not None
    assert late is None


def test_of_several_steps_the_long_one_is_to_blame():
    samples = [sample(0.02 * n, place=THERE, step=n, route="/innocent") for n in range(1, 5)]
    samples += [sample(0.08 + 0.02 * n, step=9) for n in range(1, 11)]
    block = judge(evidence(0.3, samples=samples), 0.1)
    assert block.starvation is None
    assert {each.blamed.route for each in block.samples} == {"/build"}


def steps(length, *, gap=0.006, count=60, place=lambda step: HERE):
    """Look every ``gap`` seconds at steps that take ``length`` each."""
    numbers = [int(n * gap / length) for n in range(count)]
    return [
        sample(n * gap, seconds=gap, cpu=n * gap, step=step, place=place(step))
        for n, step in enumerate(numbers)
    ]


def test_short_steps_of_one_place_that_follow_each_other_are_one_finding():
    block = judge(evidence(0.36, loop=0.35, samples=steps(0.01)), 0.1)
    assert block.starvation.seconds == pytest.approx(0.01, rel=0.2)
    assert block.starvation.steps > 30
    assert block.worst.place == HERE


@pytest.mark.parametrize(
    "samples",
    [
        steps(0.001),  # ordinary steps
        steps(0.01, place=lambda step: Line("/app/shop.py", step, f"function_{step % 5}")),  # no one place
    ],
)
def test_a_crowd_of_ordinary_requests_is_no_finding(samples):
    assert find_starvation(samples) is None
    assert judge(evidence(0.36, loop=0.35, samples=samples), 0.1) is None


def test_the_line_that_took_most_time_is_named():
    samples = [sample(0.05, seconds=0.05, place=THERE), *(sample(0.05 + n / 50) for n in range(1, 11))]
    assert judge(evidence(0.3, samples=samples), 0.1).worst.place == HERE


def library(name, line=1):
    return Line(pytest.__file__.replace("pytest/__init__.py", name), line, "call")


@pytest.mark.parametrize(
    ("stack", "index"),
    [
        ([library("requests/sessions.py"), HERE, THERE], 1),
        # An app that is installed as a package.
        ([library("urllib3/pool.py"), library("myshop/orders.py"), library("starlette/routing.py")], 1),
        ([library("starlette/routing.py"), library("uvicorn/server.py")], 0),
    ],
)
def test_the_line_to_change_is_the_innermost_of_the_app(stack, index):
    assert find_place(tuple(stack)) == stack[index]


def test_no_advice_would_not_help():
    for calls in [("re.Pattern.match",), ("json.dumps",), ("sqlite3.Connection.execute",), ()]:
        assert "run_sync" not in advise("gil", (), calls)
    for calls in [("re.Pattern.match",), ("json.dumps",), ("builtins.sorted",)]:
        assert advise("computing", (), calls) == advise("gil", (), calls)
    assert "run_sync" in advise("waiting", (), ("sqlite3.Connection.execute",))
    assert "asyncio.sleep" in advise("waiting", (), ("time.sleep",))


def test_what_faulthandler_writes_is_read():
    text = (
        'Stack (most recent call first):\n  File "/app/before.py", line 1 in old\n'
        "Stack (most recent call first):\n"
        '  File "/app/caf\\xe9.py", line 7 in build\n  File "/app/main.py", line 3 in <module>\n'
    )
    assert parse(text) == (Line("/app/café.py", 7, "build"), Line("/app/main.py", 3, "<module>"))


def finding(line=1, *, seconds=0.2, goes_on=False, cause="waiting"):
    return Finding(
        file="/srv/app/shop/reports.py",
        line=line,
        function="Report.build",
        route="/build",
        cause=cause,
        advice="",
        times=1,
        seconds=seconds,
        longest=seconds,
        request_id=f"of {seconds}",
        steps=1,
        thread="",
        stack=(),
        first=1.0,
        last=1.0,
        goes_on=goes_on,
    )


def test_findings_are_counted_by_place_with_the_worst_one_kept():
    findings = Findings()
    for seconds in (0.2, 0.5, 0.3):
        findings.add(finding(seconds=seconds))
    (only,) = findings.list_all()
    assert (only.times, only.longest, only.request_id) == (3, 0.5, "of 0.5")
    assert only.seconds == pytest.approx(1.0)
    assert findings.counts == {("/build", "waiting"): 3}


def test_a_block_that_goes_on_counts_once():
    findings = Findings()
    findings.add(finding(seconds=0.2))
    findings.add(finding(seconds=0.15, goes_on=True))
    findings.add(finding(line=2, seconds=4.0))  # it ended elsewhere
    assert [(each.line, each.times, each.goes_on) for each in findings.list_all()] == [
        (2, 1, False),
        (1, 1, False),
    ]
    assert findings.counts == {("/build", "waiting"): 2}


def test_findings_are_bounded_and_what_gave_way_is_counted():
    findings = Findings()
    for line in range(250):
        findings.add(finding(line))
    assert len(findings.list_all()) == 200
    assert findings.dropped == 50


def test_an_ignored_place_that_is_not_met_is_told(caplog):
    ignored = Ignored({"shop/reports.py:build": "nightly", "shop/reports.py:mail": "rare"})
    assert ignored.covers("/srv/app/shop/reports.py", "Report.build")
    assert ignored.covers("/srv/app/shop/reports.py", "build")
    assert not ignored.covers("/srv/app/workshop/reports.py", "Report.build")
    assert not ignored.covers("/srv/app/shop/reports.py", "rebuild")
    assert not ignored.covers("/srv/app/shop/reports.py", "Report.automail")
    ignored.warn_of_unmet()
    assert [record.place for record in caplog.records] == ["shop/reports.py:mail"]
