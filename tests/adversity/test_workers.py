"""Workers die, hang, fail to start and are signalled from all sides; the supervisor keeps its word."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from freeloop.server.backoff import Backoff

TARGETS = Path(__file__).with_name("worker_targets.py")
BOUND = 60  # seconds that anything may take here


class Supervised:
    """A supervisor in a session of its own: its events, its workers, and questions to them."""

    def __init__(self, folder, *, workers=2, shutdown_timeout=20.0, start_timeout=BOUND):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, TARGETS, folder, str(workers), str(shutdown_timeout), str(start_timeout)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            env={**os.environ, "TEST_FOLDER": str(folder)},
        )
        self.events = []
        self.errors = ""
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self.events.append({"event": "all gone"})  # nobody holds the pipe: no process is left
            self._changed.notify_all()

    def _read_errors(self):
        for line in self.process.stderr:
            self.errors += line

    def wait(self, event, count=1, **details):
        """Return the first so many events that are like this, once they have come."""

        def find():
            wanted = {"event": event, **details}.items()
            return [each for each in list(self.events) if wanted <= each.items()]

        with self._changed:
            if not self._changed.wait_for(lambda: len(find()) >= count, BOUND):
                raise AssertionError(f"{count} × {event} {details} did not come: {self.events}{self.errors}")
        return find()[:count]

    def wait_log(self, text, count=1):
        def find():
            return [each for each in list(self.events) if text in each.get("message", "")]

        with self._changed:
            if not self._changed.wait_for(lambda: len(find()) >= count, BOUND):
                raise AssertionError(f"{count} × {text!r} was not logged: {self.events}{self.errors}")
        return find()[:count]

    def wait_ready(self, count):
        """Return the ids of the first so many workers that served; the supervisor knows that they do."""
        pids = [each["pid"] for each in self.wait("serving", count)]
        for pid in pids:
            self.wait_log(f"worker {pid} is ready")
        return pids

    def problems(self):
        return [each["message"] for each in self.events if each.get("level") == "ERROR"]

    def ask(self, question="who"):
        (bound,) = self.wait("bound")
        with socket.create_connection(("127.0.0.1", bound["port"]), timeout=BOUND) as client:
            client.sendall(question.encode())
            return json.loads(client.makefile().read())

    def ask_all(self, pids):
        """Ask until each of these workers has answered; return the last answer of each."""
        answers = {}
        for _ in range(10_000):
            answer = self.ask()
            answers[answer["pid"]] = answer
            if set(pids) <= answers.keys():
                return answers
        raise AssertionError(f"of {pids} only these answered: {list(answers)}")

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """Return the exit code, once every process has gone."""
        self.wait("all gone")
        code = self.process.wait(BOUND)
        for reader in self._readers:
            reader.join(BOUND)
        return code

    def stop(self):
        self.signal(signal.SIGTERM)
        return self.end()

    def clear(self):
        """Leave nothing behind, also where the supervisor did not do what it should."""
        self.process.kill()
        for pid in {each["pid"] for each in self.events if "pid" in each}:
            if self._is_ours(pid):
                os.kill(pid, signal.SIGKILL)
        self.end()
        self.process.stdout.close()
        self.process.stderr.close()

    def _is_ours(self, pid):
        try:
            return f"TEST_FOLDER={self.folder}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


@pytest.fixture
def start(tmp_path):
    running = []

    def start(*files, **options):
        for name in files:
            (tmp_path / name).touch()
        running.append(Supervised(tmp_path, **options))
        return running[-1]

    yield start
    for supervised in running:
        supervised.clear()


@pytest.fixture
def gate(tmp_path):
    """Workers wait while they load, as long as this is entered."""

    @contextlib.contextmanager
    def shut():
        with (tmp_path / "gate").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    return shut()


def test_all_workers_answer_and_sigterm_ends_them_in_order(start):
    supervised = start(workers=3)
    pids = supervised.wait_ready(3)
    supervised.ask_all(pids)
    assert supervised.stop() == 0
    ended = supervised.wait("ended", 3)
    assert {each["pid"] for each in ended} == set(pids)
    assert [each["had"] for each in ended] == [["SIGTERM"]] * 3
    assert supervised.problems() == []
    assert supervised.errors == ""


def test_ctrl_c_of_a_terminal_counts_once_and_the_second_hurries(start):
    supervised = start("lingers")
    pids = supervised.wait_ready(2)
    os.killpg(supervised.process.pid, signal.SIGINT)  # as a terminal does, to everything in the foreground
    supervised.wait("signal", 2)
    supervised.wait_log("SIGINT: 2 workers stop")
    assert {answer["pid"]: answer["had"] for answer in supervised.ask_all(pids).values()} == {
        pid: ["SIGINT"] for pid in pids
    }
    os.killpg(supervised.process.pid, signal.SIGINT)
    assert supervised.end() == 0
    assert [each["had"] for each in supervised.wait("ended", 2)] == [["SIGINT", "SIGINT"]] * 2
    assert supervised.errors == ""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_workers_start_ends_everything_quietly(start, gate, times):
    with gate:
        supervised = start()
        supervised.wait("loading", 2)
        os.killpg(supervised.process.pid, signal.SIGINT)
        if times == 2:
            supervised.wait_log("SIGINT: 2 workers stop")
            os.killpg(supervised.process.pid, signal.SIGINT)
        assert supervised.end() == 0
    assert supervised.problems() == []
    assert supervised.errors == ""


def test_ctrl_c_that_reaches_a_worker_in_its_first_moments_is_left_to_the_supervisor(start, gate):
    with gate:
        supervised = start()
        for loading in supervised.wait("loading", 2):
            os.kill(loading["pid"], signal.SIGINT)
    supervised.ask_all(supervised.wait_ready(2))
    assert supervised.stop() == 0
    assert [each["had"] for each in supervised.wait("ended", 2)] == [["SIGTERM"]] * 2
    assert supervised.errors == ""


def test_connections_are_refused_once_the_last_worker_listens_no_more(start):
    supervised = start("lingers", "closes")
    supervised.wait_ready(2)
    supervised.signal(signal.SIGTERM)
    supervised.wait("closed", 2)
    with pytest.raises(ConnectionRefusedError):
        supervised.ask()
    assert supervised.stop() == 0


def test_a_worker_that_is_killed_or_ends_is_replaced_at_once_and_the_log_says_how(start):
    supervised = start()
    first, second = supervised.wait_ready(2)
    os.kill(first, signal.SIGKILL)
    third = supervised.wait_ready(3)[2]
    assert supervised.problems() == [f"worker {first} was killed by SIGKILL; another one starts now"]
    asked = supervised.ask("exit")["pid"]
    fourth = supervised.wait_ready(4)[3]
    assert f"worker {asked} ended with exit code 5; another one starts" in supervised.problems()[1]
    supervised.ask_all({second, third, fourth} - {asked})
    assert supervised.stop() == 0


def test_a_worker_stopped_by_somebody_else_is_replaced(start):
    supervised = start()
    pids = supervised.wait_ready(2)
    os.kill(pids[0], signal.SIGTERM)
    supervised.wait_ready(3)
    assert supervised.problems() == []  # it ended in order, as at its limit of requests
    assert supervised.stop() == 0


def test_a_worker_that_fails_at_the_first_start_ends_the_service_with_its_exit_code(start):
    supervised = start("broken", workers=3)
    assert supervised.end() == 3
    (reason,) = supervised.problems()
    assert "ended with exit code 3 before it was ready: the service cannot start" in reason


def test_a_worker_that_is_not_ready_in_time_at_the_first_start_ends_the_service(start):
    supervised = start("stuck", workers=1, start_timeout=1.0)
    assert supervised.end() == 1
    (reason,) = supervised.problems()
    assert "was not ready within 1 s and was killed: the service cannot start" in reason


def test_later_failures_are_retried_with_longer_delays_until_one_succeeds(start):
    supervised = start(workers=1)
    (pid,) = supervised.wait_ready(1)
    (supervised.folder / "broken").touch()
    os.kill(pid, signal.SIGKILL)
    supervised.wait_log("another one starts in 1 s")
    (supervised.folder / "broken").unlink()
    supervised.wait_ready(2)
    delays = [line.split("starts ")[1] for line in supervised.problems()]
    assert delays == ["now", "in 0.5 s", "in 1 s"]
    assert supervised.ask()["pid"] != pid
    assert supervised.stop() == 0


def test_sigterm_does_not_wait_for_the_next_try(start):
    supervised = start(workers=1)
    (pid,) = supervised.wait_ready(1)
    (supervised.folder / "broken").touch()
    os.kill(pid, signal.SIGKILL)
    supervised.wait_log("another one starts in 0.5 s")
    assert supervised.stop() == 0


def test_sighup_replaces_one_worker_after_the_other_and_no_request_fails(start):
    supervised = start(workers=2)
    old = supervised.wait_ready(2)
    descriptors = count_descriptors(supervised)
    answered, failed, enough = [], [], threading.Event()

    def load():
        while not enough.is_set():
            try:
                answered.append(supervised.ask()["pid"])
            except (OSError, ValueError) as error:
                failed.append(error)

    loads = [threading.Thread(target=load) for _ in range(4)]
    for each in loads:
        each.start()
    try:
        supervised.signal(signal.SIGHUP)
        supervised.wait("ended", 2)
    finally:
        enough.set()
        for each in loads:
            each.join(BOUND)
    new = supervised.wait_ready(4)[2:]
    assert failed == []
    assert set(answered) & set(old)
    supervised.ask_all(new)

    supervised.wait_log("has stopped", 2)
    assert count_descriptors(supervised) == descriptors
    story = [each for each in supervised.events if each["event"] in {"serving", "signal", "ended"}]
    assert [(each["event"], each["pid"]) for each in story] == [
        ("serving", story[0]["pid"]),
        ("serving", story[1]["pid"]),
        ("serving", new[0]),
        ("signal", story[3]["pid"]),
        ("ended", story[3]["pid"]),
        ("serving", new[1]),
        ("signal", story[6]["pid"]),
        ("ended", story[6]["pid"]),
    ]
    assert {story[3]["pid"], story[6]["pid"]} == set(old)
    assert supervised.problems() == []
    assert supervised.stop() == 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("broken", "ended with exit code 3 before it was ready"), ("stuck", "was not ready within 5 s")],
)
def test_sighup_with_a_worker_that_cannot_start_leaves_the_old_ones(start, fault, reason):
    supervised = start(start_timeout=5.0)
    old = supervised.wait_ready(2)
    (supervised.folder / fault).touch()
    supervised.signal(signal.SIGHUP)
    supervised.wait_log("the old workers stay, and the restart ends")
    (problem,) = supervised.problems()
    assert reason in problem
    supervised.ask_all(old)

    (supervised.folder / fault).unlink()
    supervised.signal(signal.SIGHUP)
    supervised.wait("ended", 2)
    assert supervised.stop() == 0
    log = [each["message"] for each in supervised.events if each["event"] == "log"]
    again = log.index("SIGHUP: 2 workers are replaced", log.index("SIGHUP: 2 workers are replaced") + 1)
    assert len([line for line in log[:again] if line.endswith(" starts")]) == 2 + 1


def test_a_shutdown_in_the_middle_of_a_restart_does_not_hurry_the_worker_that_stops_already(start):
    supervised = start("lingers", workers=1)
    (old,) = supervised.wait_ready(1)
    supervised.signal(signal.SIGHUP)
    supervised.wait("signal", pid=old)
    new = supervised.wait_ready(2)[1]
    supervised.signal(signal.SIGTERM)
    supervised.wait("signal", pid=new)
    assert supervised.ask_all([old, new])[old]["had"] == ["SIGTERM"]
    assert supervised.stop() == 0
    assert [each["had"] for each in supervised.wait("ended", 2)] == [["SIGTERM", "SIGTERM"]] * 2


def test_the_old_worker_may_die_while_its_replacement_starts(start):
    supervised = start(workers=1)
    (old,) = supervised.wait_ready(1)
    supervised.signal(signal.SIGHUP)
    supervised.wait_log("starts", 2)
    os.kill(old, signal.SIGKILL)
    new = supervised.wait_ready(2)[1]
    assert supervised.ask_all([new]).keys() == {new}
    assert supervised.stop() == 0
    assert [each["pid"] for each in supervised.events if each["event"] == "serving"] == [old, new]


def test_sigttin_adds_a_worker_and_sigttou_removes_one_but_not_the_last(start):
    supervised = start(workers=1)
    supervised.wait_ready(1)
    supervised.signal(signal.SIGTTIN)
    first, second = supervised.wait_ready(2)
    supervised.ask_all([first, second])
    supervised.signal(signal.SIGTTOU)
    (ended,) = supervised.wait("ended")
    supervised.wait_log("has stopped")
    supervised.signal(signal.SIGTTOU)
    supervised.wait_log("1 worker is the least")
    assert supervised.ask()["pid"] in {first, second} - {ended["pid"]}
    assert supervised.stop() == 0
    assert supervised.problems() == []


def test_a_worker_that_does_not_stop_is_killed_and_none_starts_any_more(start):
    supervised = start("deaf", shutdown_timeout=0.1)
    dead, deaf = supervised.wait_ready(2)
    (supervised.folder / "broken").touch()
    os.kill(dead, signal.SIGKILL)
    supervised.wait_log("another one starts in 0.5 s")
    supervised.signal(signal.SIGTERM)
    supervised.wait("signal", name="SIGTERM", pid=deaf)
    assert supervised.end() == 1
    log = [each["message"] for each in supervised.events if each["event"] == "log"]
    (asked,) = [index for index, line in enumerate(log) if line.startswith("SIGTERM")]
    assert f"worker {deaf} did not end within 2.1 s: killed" in log[asked:]
    assert [line for line in log[asked:] if line.endswith(" starts")] == []


def test_a_worker_that_fails_while_it_stops_gives_exit_code_1(start):
    supervised = start("lingers")
    pids = supervised.wait_ready(2)
    supervised.signal(signal.SIGTERM)
    supervised.wait("signal", 2)
    os.kill(pids[0], signal.SIGKILL)
    supervised.wait_log("asked to stop, was killed by SIGKILL")
    assert supervised.stop() == 1


@pytest.mark.parametrize("files", [[], ["deaf"]])
def test_a_supervisor_killed_with_kill_9_leaves_no_orphan(start, files):
    supervised = start(*files, shutdown_timeout=0.1)
    pids = supervised.wait_ready(2)
    supervised.process.kill()
    assert supervised.end() == -signal.SIGKILL
    told = supervised.wait("signal", 2)
    assert {each["pid"] for each in told} == set(pids)
    assert {each["name"] for each in told} == {"SIGTERM"}


def test_a_supervisor_killed_while_workers_start_leaves_no_orphan(start):
    supervised = start()
    supervised.wait_log("starts", 2)
    supervised.process.kill()
    assert supervised.end() == -signal.SIGKILL


def count_descriptors(supervised):
    return len(list(Path(f"/proc/{supervised.process.pid}/fd").iterdir()))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_delays_double_up_to_their_limit_for_ever():
    backoff = Backoff(Clock())
    assert [backoff.fail() for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert {backoff.fail() for _ in range(5000)} == {30}


def test_a_minute_of_health_begins_the_delays_anew_and_a_shorter_one_does_not():
    clock = Clock()
    backoff = Backoff(clock)
    assert [backoff.fail() for _ in range(3)] == [0, 0.5, 1]
    backoff.recover()
    clock.now += 59.9
    assert backoff.fail() == 2
    clock.now += 600.0  # time without health does not count
    assert backoff.fail() == 4
    backoff.recover()
    clock.now += 60.0
    assert [backoff.fail() for _ in range(2)] == [0, 0.5]
