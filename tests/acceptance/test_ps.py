"""``freeloop ps`` beside real processes: live ones, hung ones, dead ones."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from run_process import BOUND, Processes

APPS = Path(__file__).with_name("apps")


@pytest.fixture
def runtime():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the path of a socket must be short
        yield Path(folder)


@pytest.fixture
def processes():
    with Processes() as processes:
        yield processes


@pytest.fixture
def ps(runtime):
    def ps(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "freeloop", "ps", *map(str, arguments)],
            env={**os.environ, "FREELOOP_RUNTIME_DIR": str(runtime)},
            capture_output=True,
            text=True,
            check=False,
            timeout=BOUND,
        )

    return ps


@pytest.fixture
def start(processes, runtime):
    def start(*arguments, runner="freeloop", **environment):
        run = getattr(processes, runner)(
            "waiting:app", *arguments, cwd=APPS, FREELOOP_RUNTIME_DIR=runtime, **environment
        )
        assert run.port
        return run

    return start


def until(condition, within=BOUND):
    """Ask again until the answer is what it is to be; return it."""
    end = time.monotonic() + within
    while not (answer := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return answer


def line_of(mark):
    """Return the number of the app's line that ends with this comment."""
    source = (APPS / "waiting.py").read_text().splitlines()
    return next(number for number, text in enumerate(source, 1) if text.endswith(f" {mark}"))


def snapshots(ps, *arguments):
    shown = ps(*arguments, "--json")
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


def waits_of(snapshot, route):
    scopes = {scope["id"] for scope in snapshot["scopes"] if scope["route"] == route}
    return [task["wait"] for task in snapshot["tasks"] if task["scope"] in scopes and task["wait"]]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_requests_are_shown_with_what_they_wait_for(start, ps, loop):
    run = start("--loop", loop)
    connections = [run.connect().ask(f"/wait/{number}") for number in range(20)]

    def all_wait():
        (snapshot,) = snapshots(ps)
        return len(waits_of(snapshot, "/wait/{number}")) == len(connections) and snapshot

    snapshot = until(all_wait)
    assert snapshot["pid"] == run.process.pid
    assert not snapshot["hung"]
    assert snapshot["deadlocks"] == []
    waits = waits_of(snapshot, "/wait/{number}")
    assert sorted(wait["kind"] for wait in waits) == ["lock"] * 19 + ["sleep"]
    holders = {holder["task"] for wait in waits for holder in wait["holders"]}
    scopes = {task["id"]: task["scope"] for task in snapshot["tasks"] if task["wait"] in waits}
    assert len(holders) == 1
    assert holders < set(scopes)

    text = ps(run.process.pid).stdout
    assert text.startswith(f"{run.process.pid} Waiting room (")
    assert "(and 18 more like it)" in text
    assert text.count("http /wait/{number} for ") == 2
    assert f"{APPS / 'waiting.py'}:{line_of('sleep')} in wait" in text
    assert "held by /wait/{number} (" in text


def test_a_deadlock_is_named(start, ps):
    run = start()
    clients = [run.connect().ask(path) for path in ("/first", "/second")]

    def find():
        (snapshot,) = snapshots(ps, "waiting:app")
        return snapshot["deadlocks"]

    (deadlock,) = until(find)
    assert len(deadlock["tasks"]) == len(clients)
    text = ps("Waiting room").stdout
    assert "DEADLOCK of 2 tasks: they wait for each other" in text
    assert f"waiting.py:{line_of('wants the other')} in first" in text
    assert f"waiting.py:{line_of('wants the lock')} in second" in text


@pytest.mark.parametrize(
    "runner",
    [("freeloop", {}), ("uvicorn", {"WITH_KIT": "1"})],
    ids=["freeloop run", "a kit under plain uvicorn"],
)
def test_a_hung_process_answers_and_shows_where_it_hangs(start, ps, runner):
    name, environment = runner
    run = start(runner=name, **environment)
    waiting = run.connect().ask("/wait/1")
    until(lambda: waits_of(snapshots(ps)[0], "/wait/{number}"))
    hanging = run.connect().ask("/hang")

    def is_hung():
        (snapshot,) = snapshots(ps, run.process.pid)
        return snapshot["hung"] and snapshot

    snapshot = until(is_hung)
    line = line_of("hang")
    place = {"file": str(APPS / "waiting.py"), "line": line, "function": "hang", "module": "waiting"}
    assert place in snapshot["loop_stack"]
    (running,) = [task for task in snapshot["tasks"] if task["state"] == "running"]
    assert place in running["stack"]
    routes = {scope["id"]: scope["route"] for scope in snapshot["scopes"]}
    assert routes[running["scope"]] == "/hang"
    (wait,) = waits_of(snapshot, "/wait/{number}")
    assert wait["kind"] == "sleep"
    text = ps().stdout
    assert "THE LOOP IS HUNG" in text
    assert f"waiting.py:{line} in hang" in text
    del waiting, hanging


def test_each_worker_answers_for_itself(start, ps):
    start("--workers", "2")
    listed = until(lambda: (lines := ps().stdout.splitlines()) and len(lines) == 2 and lines)
    pids = {int(line.split()[0]) for line in listed}
    assert {snapshot["pid"] for snapshot in snapshots(ps, "waiting:app")} == pids
    assert len(pids) == 2


def test_a_dead_process_is_forgotten_and_its_socket_removed(start, ps, runtime):
    run = start()
    until(lambda: list(runtime.glob("*.sock")))
    run.process.kill()
    run.wait()
    assert list(runtime.glob("*.sock"))
    gone = ps()
    assert gone.returncode == 1
    assert gone.stderr == (
        "freeloop: No answer: no process of this user answers. It must run an app with Freeloop, with the "
        f"same FREELOOP_RUNTIME_DIR ({runtime}).\n"
    )
    assert not list(runtime.glob("*.sock"))


def test_an_ordinary_end_removes_the_socket(start, runtime):
    run = start()
    until(lambda: list(runtime.glob("*.sock")))
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 0
    assert not list(runtime.iterdir())


def test_a_stopped_process_is_no_longer_waited_for(start, ps):
    run = start()
    until(lambda: ps().returncode == 0)
    run.process.send_signal(signal.SIGSTOP)
    try:
        shown = ps(run.process.pid)
    finally:
        run.process.send_signal(signal.SIGCONT)
    assert shown.returncode == 1
    assert "does not answer" in shown.stderr


def test_who_is_not_there_is_named_with_who_is(start, ps):
    run = start()
    until(lambda: ps().returncode == 0)
    missing = ps("bakery")
    assert missing.returncode == 1
    assert "is bakery" in missing.stderr
    assert f"{run.process.pid} Waiting room" in missing.stderr


def test_where_there_are_no_sockets_the_command_says_so():
    shown = subprocess.run(
        [sys.executable, "-m", "freeloop", "ps"],
        env={**os.environ, "FREELOOP_RUNTIME_DIR": "none"},
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND,
    )
    assert shown.returncode == 1
    assert "FREELOOP_RUNTIME_DIR is none" in shown.stderr
