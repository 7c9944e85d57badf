"""The watchdog in a real server: every way to block the loop, and what only looks like one.

What a finding says is judged, never how long anything took by the clock on the wall.
"""

import contextlib
import http.server
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from freeloop.watch.backstop import find_file
from run_process import BOUND, Processes

APPS = Path(__file__).with_name("apps")
LINES = (APPS / "blocking.py").read_text().splitlines()
THRESHOLD = 0.1  # seconds, the default
TICK = THRESHOLD / 5

# What is found of each way: its cause, and a part of the advice.
WAYS = {
    "sleep": ("waiting", "await asyncio.sleep"),
    "requests": ("waiting", "outbound client"),
    "cpu-loop": ("computing", "ProcessPoolExecutor"),
    "regular-expression": ("gil", "remove nested repetition"),
    "json": ("gil", "Send less at a time"),
    "big-integers": ("gil", "ProcessPoolExecutor"),
    "sorted": ("gil", "ORDER BY"),
    "pbkdf2": ("computing", "ProcessPoolExecutor; as it lets go of the GIL"),
    "sqlite": ("waiting", "its connection included: 'await kit.run_sync"),
    "dns": ("waiting", "getaddrinfo(host, port)"),
    "file": ("computing", "Give the work on files to a thread"),
    "lock": ("waiting", "asyncio.Lock"),
    "subprocess": ("waiting", "create_subprocess_exec"),
    "library": ("waiting", "outbound client"),
    "gathered": ("waiting", "await asyncio.sleep"),
    "callback": ("waiting", "await asyncio.sleep"),
    "thread": ("thread", "in place of a thread"),
    "starvation": ("computing", "many follow each other"),
}


class Watched:
    """A running app, and what its watchdog has found."""

    def __init__(self, run):
        self.run = run
        run.get("/prepare")
        self.seen = {}
        self.new()

    def look(self):
        return self.run.get("/findings").json()

    def new(self):
        """Return what was found, or found again, since the last call."""
        found = {(each["line"], each["route"]): each for each in self.look()["findings"]}
        now = {key: (each["times"], each["goes_on"]) for key, each in found.items()}
        fresh = [each for key, each in found.items() if now[key] != self.seen.get(key)]
        self.seen = now
        return fresh

    def wait_for(self, line):
        """Return what is new, once it is found that this line has blocked."""
        fresh, until = [], time.monotonic() + 10
        while time.monotonic() < until:
            fresh += [each for each in self.new() if not each["goes_on"]]
            if any(each["line"] == line for each in fresh):
                return fresh
        raise AssertionError(f"line {line} was not found, but {fresh}")

    def wait_for_stall(self, before):
        """Return what is seen once it is found that the host has withheld the CPU since ``before``."""
        until = time.monotonic() + 10
        while (seen := self.look())["stalls"] == before["stalls"]:
            assert time.monotonic() < until, seen
        return seen

    def ask_together(self, path, times):
        connections = [self.run.connect() for _ in range(times)]
        for connection in connections:
            connection.ask(path)
        return [connection.answer().status for connection in connections]


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def watched(request):
    with Processes() as processes:
        yield Watched(
            processes.freeloop("blocking:app", "--loop", request.param, "--no-access-log", cwd=APPS)
        )


@pytest.fixture(scope="module")
def upstream():
    """Answers after a while, in this process."""

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(0.3)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def silent_name_server():
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def line_of(way):
    return next(number for number, line in enumerate(LINES, 1) if line.endswith(f"# {way}"))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_block_is_found(watched, way, upstream, silent_name_server):
    cause, advice = WAYS[way]
    query = {"requests": f"?upstream={upstream}", "library": f"?upstream={upstream}"}
    query["dns"] = f"?port={silent_name_server}"
    statuses = watched.ask_together(f"/{way}{query.get(way, '')}", 40 if way == "starvation" else 1)
    assert {*statuses} == {200}
    found = watched.wait_for(line_of(way))
    assert {(each["file"], each["line"]) for each in found} == {(str(APPS / "blocking.py"), line_of(way))}
    # A bare callback belongs to nobody.
    assert {each["route"] for each in found} == {"" if way == "callback" else f"/{way}"}
    # That the GIL was held all the time is not sure where the machine is crowded: the advice fits both.
    assert {each["cause"] for each in found} <= {cause, *(["computing"] if cause == "gil" else [])}
    assert advice in found[0]["advice"]
    assert (found[0]["steps"] > 1) == (way == "starvation")
    assert bool(found[0]["request_id"]) == (way != "callback")
    assert {each["thread"] for each in found} == {"AnyIO worker thread" if way == "thread" else ""}


@pytest.mark.parametrize("way", [way for way, (cause, _) in WAYS.items() if cause == "gil"])
def test_that_the_gil_was_held_is_told_and_that_no_thread_helps(watched, way):
    until = time.monotonic() + BOUND
    while [f"/{way}", "gil"] not in [each[:2] for each in watched.look()["blocks"]]:
        assert time.monotonic() < until  # on a crowded machine it is not always sure
        assert watched.run.get(f"/{way}").status == 200
        watched.wait_for(line_of(way))
    # What is kept of a line is its longest block, of which it may have been less sure.
    (found,) = [each for each in watched.look()["findings"] if each["route"] == f"/{way}"]
    assert found["cause"] == "computing" or "A thread will not help" in found["advice"]


def test_a_thread_that_held_the_gil_is_named_with_the_line_that_it_ran(watched):
    found, until = [], time.monotonic() + BOUND
    while not found:  # on a crowded machine it is not always sure who held the GIL
        assert time.monotonic() < until
        assert watched.run.get("/own-thread").status == 200
        watched.run.get("/awaits")  # the heartbeat after it has come by then
        found = [each for each in watched.new() if each["line"] == line_of("own-thread")]
    (found,) = found
    assert (found["cause"], found["thread"]) == ("thread", "cruncher")
    # A thread that the app has started itself works for nobody that is known.
    assert (found["function"], found["route"], found["request_id"]) == ("crunch", "", "")
    assert found["stack"][0] == [str(APPS / "blocking.py"), line_of("own-thread"), "crunch"]
    told = watched.run.wait_for(lambda record: record.get("held_by") == "cruncher")
    assert told["place"] == f"{APPS / 'blocking.py'}:{line_of('own-thread')} in crunch"
    assert "in place of a thread" in told["advice"]


@pytest.mark.parametrize(
    ("path", "times"),
    [
        ("/awaits", 20),
        ("/in-a-thread", 20),
        ("/computes-in-a-thread", 2),
        ("/in-a-process", 1),
        ("/sleep?seconds=0.04", 1),
        ("/cpu-loop?seconds=0.04", 1),
        ("/crowd", 100),
    ],
)
def test_what_only_looks_like_a_block_is_none(watched, path, times):
    assert {*watched.ask_together(path, times)} == {200}
    assert watched.new() == []


def test_one_culprit_among_many_innocent_requests_is_named_alone(watched):
    innocent = [watched.run.connect() for _ in range(40)]
    for connection in innocent:
        connection.ask("/awaits?seconds=1.5")
    assert watched.run.get("/sleep").status == 200
    found = watched.wait_for(line_of("sleep"))
    assert [each["route"] for each in found] == ["/sleep"]
    assert {connection.answer().status for connection in innocent} == {200}
    assert watched.new() == []


def test_blocks_little_longer_than_the_threshold_are_found(watched):
    before = sum(each["times"] for each in watched.look()["findings"] if each["line"] == line_of("sleep"))
    for _ in range(20):
        assert watched.run.get(f"/sleep?seconds={1.1 * THRESHOLD}").status == 200
    watched.run.get("/awaits")  # the last one's heartbeat has come by then
    after = sum(each["times"] for each in watched.look()["findings"] if each["line"] == line_of("sleep"))
    watched.new()
    assert after - before >= 19


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux shows the files of another process")
def test_a_block_that_holds_the_gil_for_seconds_is_known_at_once_from_outside(watched):
    pid = watched.run.process.pid
    place = f'blocking.py", line {line_of("catastrophe")} in match_for_seconds'
    delays = []
    for _ in range(3):
        before = lacked_cpu(pid)
        connection = watched.run.connect().ask("/catastrophe")
        connection.sock.settimeout(0.01)
        written = None
        while written is None:
            file = find_file(pid)
            if place in file.read_text():
                # What counts is the time in which it had a CPU: a busy machine only adds to it.
                written = file.stat().st_mtime - time.time() + time.monotonic() - lacked_cpu(pid) + before
        connection.sock.settimeout(60)
        told = connection.answer().json()
        assert written < told["ended"] - 1, "it was known only once it was over"
        found = watched.wait_for(line_of("catastrophe"))
        # For so long a time it is sure.
        assert [(each["route"], each["cause"]) for each in found] == [("/catastrophe", "gil")]
        delays.append(written - told["began"])
        if delays[-1] < THRESHOLD + 2 * TICK:
            break
    assert min(delays) < THRESHOLD + 2 * TICK + 0.01, delays  # the clock of files has steps of up to 10 ms


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux shows the signals of another process")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_without_the_timer_sigalrm_is_left_alone_and_a_block_known_once_it_is_over(loop):
    with Processes() as processes:
        ours = processes.freeloop("blocking:app", "--loop", loop, cwd=APPS)
        run = processes.freeloop("blocking:app", "--loop", loop, cwd=APPS, FREELOOP_WATCH_BACKSTOP="false")
        watched = Watched(run)
        assert ours.get("/awaits").status == 200
        assert [catches_alarm(each.process.pid) for each in (ours, run)] == [True, False]
        assert find_file(ours.process.pid) is not None
        assert find_file(run.process.pid) is None
        assert run.get("/json").status == 200
        found = watched.wait_for(line_of("json"))
        assert {each["route"] for each in found} - {"/prepare"} == {"/json"}
        assert not catches_alarm(run.process.pid)


def catches_alarm(pid):
    """Whether the process has a handler of its own for SIGALRM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")]
    return bool(caught >> (signal.SIGALRM - 1) & 1)


def test_what_is_to_be_ignored_is_no_finding_and_what_was_not_met_is_told():
    ignored = "blocking.py:sleep=asked for; apps/blocking.py:gone=it was there once"
    with Processes() as processes:
        run = processes.freeloop("blocking:app", "--no-access-log", cwd=APPS, FREELOOP_WATCH_IGNORE=ignored)
        watched = Watched(run)
        assert run.get("/sleep").status == 200
        assert run.get("/lock").status == 200
        # By then the earlier one is judged too.
        found = watched.wait_for(line_of("lock"))
        assert {each["route"] for each in found} - {"/prepare"} == {"/lock"}
        assert {route for route, *_ in watched.look()["blocks"]} - {"/prepare"} == {"/lock"}
        assert run.stop() == 0
    assert {record["route"] for record in run.records if "advice" in record} - {"/prepare"} == {"/lock"}
    unmet = [record for record in run.records if "FREELOOP_WATCH_IGNORE" in record.get("event", "")]
    assert [(each["place"], each["reason"]) for each in unmet] == [
        ("apps/blocking.py:gone", "it was there once")
    ]


def lacked_cpu(pid):
    """Return for how many seconds the main thread was ready to run and had no CPU, so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def test_a_stopped_process_is_no_finding(watched):
    before = watched.look()
    connection = watched.run.connect().ask("/awaits?seconds=0.5")
    stop_for(watched.run.process.pid, 1.0)
    assert connection.answer().status == 200
    assert watched.wait_for_stall(before)["stalled"] - before["stalled"] > 0.5
    assert watched.new() == []


def test_a_throttled_process_is_no_finding(watched):
    before = watched.look()
    connection = watched.run.connect().ask("/cpu-loop?seconds=0.03")
    for _ in range(10):  # a tenth of a CPU
        stop_for(watched.run.process.pid, 0.09)
        time.sleep(0.01)
    assert connection.answer().status == 200
    watched.wait_for_stall(before)
    assert watched.new() == []


def test_a_process_throttled_by_its_cgroup_is_no_finding(watched):
    before = watched.look()
    with tenth_of_a_cpu(watched.run.process.pid):
        # Each takes three or four of the periods in which a process gets 10 ms of CPU time.
        answers = [watched.run.connect().ask("/cpu-loop?seconds=0.03").answer() for _ in range(5)]
    assert {answer.status for answer in answers} == {200}
    assert watched.wait_for_stall(before)["stalled"] - before["stalled"] > 0.5
    assert watched.new() == []


@contextlib.contextmanager
def tenth_of_a_cpu(pid):
    """Have the kernel give a process 10 ms of CPU time in each 100 ms, by a cgroup of version 1 or 2."""
    root = Path("/sys/fs/cgroup")
    parent = root / "cpu" if (root / "cpu").is_dir() else root
    group = parent / f"freeloop-test-{pid}"
    try:
        group.mkdir()
        if parent == root:
            (group / "cpu.max").write_text("10000 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("10000")
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def stop_for(pid, seconds):
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def test_the_log_tells_once_what_metrics_count(watched):
    watched.run.get("/sleep")
    watched.wait_for(line_of("sleep"))
    told = [record for record in watched.run.records if record.get("route") == "/sleep"]
    assert 1 <= len(told) <= 2  # again only where it was worse by half
    assert told[0]["advice"] == "Write 'await asyncio.sleep(seconds)'."
    metrics = watched.run.get("/metrics").body.decode()
    counts = [line for line in metrics.splitlines() if line.startswith("freeloop_loop_blocked_total")]
    assert any('route="/sleep"' in line and 'cause="waiting"' in line for line in counts)
    assert 'freeloop_loop_lag_seconds_bucket{le="0.1"}' in metrics
    assert float(metrics.partition("\nfreeloop_loop_busy_seconds_total ")[2].split()[0]) > 1


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_the_least_threshold_finds_shorter_blocks_and_tells_of_long_ones_while_they_go_on(loop):
    with Processes() as processes:
        run = processes.freeloop(
            "blocking:app", "--loop", loop, "--no-access-log", cwd=APPS, FREELOOP_WATCH_THRESHOLD=0.02
        )
        connection = run.connect().ask("/sleep?seconds=0.04")
        found = run.wait_for(lambda record: record.get("route") == "/sleep")
        assert found["cause"] == "waiting"
        assert found["seconds"] < 1
        assert connection.answer().status == 200
        connection.ask("/sleep?seconds=5")
        run.wait_for(lambda record: record.get("route") == "/sleep" and record["seconds"] > 1)
        connection.sock.setblocking(False)
        with pytest.raises(BlockingIOError):  # it sleeps on
            connection.sock.recv(1)
