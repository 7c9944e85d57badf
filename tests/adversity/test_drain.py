"""Shutdowns with everything open that can be open: order, answers, times, exit code."""

import asyncio
import json
import signal
import threading
import time

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from database_witness import Witness
from freeloop.testing import eventually
from run_process import BOUND, Processes, refuses

TOTAL = 4.0
GRACE = TOTAL * 2 / 3
CLEANUP = TOTAL * 5 / 6
DELAY = 0.5
WAYS = ("SIGTERM", "SIGINT", "second signal", "SIGKILL")


@pytest.fixture
def processes():
    with Processes() as processes:
        yield processes


def begin_shutdown(app, number=signal.SIGTERM):
    """Send a signal, and return once it is heeded."""
    app.process.send_signal(number)
    app.wait_for(lambda record: record.get("event") == "stopping", timeout=BOUND)


class Watched:
    """What one client sees until the server closes its connection, and when that is."""

    def __init__(self, read):
        self.error = None
        self.seen = None
        self.ended = None
        self._read = read
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self.seen = self._read()
        except OSError as error:
            self.error = error
        self.ended = time.monotonic()

    def join(self):
        self._thread.join(BOUND)
        assert self.ended is not None, "the connection was not closed"


class Shutdown:
    """One process with everything open, ended in one way."""

    def __init__(self, processes, address, way):
        self.way = way
        self.app = app = processes.freeloop(
            "drain_app:kit_app",
            FREELOOP_SHUTDOWN_TIMEOUT=TOTAL,
            FREELOOP_DRAIN_DELAY=DELAY,
            TEST_ADDRESS=json.dumps(address),
        )
        self.clients = {}
        self._open()
        idle = app.connect()
        assert idle.get("/quick").status == 200
        self.clients["idle"] = Watched(idle.rest)
        self.began = time.monotonic()
        self._end(way)
        for client in self.clients.values():
            client.join()
        self.code = app.wait(BOUND)
        self.took = time.monotonic() - self.began

    def _open(self):
        app = self.app
        for name in ("events", "stream"):
            client = app.connect().ask(f"/{name}")
            client.read_until(b"\n\n")
            self.clients[name] = Watched(client.rest)
        for name in ("ws", "deaf"):
            client = app.clients.enter_context(connect(f"ws://127.0.0.1:{app.port}/{name}"))
            if name == "ws":
                client.send("hello")
                assert client.recv() == "hello"
            self.clients[name] = Watched(lambda client=client: close_code(client))
        # PostgreSQL only sees that a killed client has gone when its statement is over.
        query = f"query?seconds={2 if self.way == 'SIGKILL' else 25}"
        for path in ("slow", "endless", "thread", "transaction", query):
            client = app.connect().ask(f"/{path}")
            self.clients[path.partition("?")[0]] = Watched(client.rest)
        half = app.connect().send(b"POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nhalf")
        self.clients["body"] = Watched(half.rest)
        for seconds in (0.7, 60):
            app.get(f"/spawn?seconds={seconds}")
            app.wait_event("spawned", seconds=seconds)
        for name in ("ws", "deaf", "slow", "endless", "thread", "inserted", "query", "body"):
            app.wait_event(name)

    def _end(self, way):
        app = self.app
        if way == "SIGKILL":
            app.process.kill()
            return
        begin_shutdown(app, signal.SIGINT if way == "SIGINT" else signal.SIGTERM)
        if way == "second signal":
            self.began = time.monotonic()
            app.process.send_signal(signal.SIGTERM)
        if way == "SIGTERM":
            self.ready = app.get("/readyz")
            self.late = app.get("/quick")
            app.get("/release")

    def elapsed(self, client):
        return self.clients[client].ended - self.began


def close_code(client):
    try:
        client.recv(BOUND)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


@pytest.fixture(scope="module")
def witness(postgres):
    with Witness(postgres) as witness:
        yield witness


@pytest.fixture(scope="module", params=WAYS)
def shutdown(request, witness):
    with Processes() as processes:
        yield Shutdown(processes, witness.address, request.param)


def hurried(shutdown):
    return shutdown.way == "second signal"


def killed(shutdown):
    return shutdown.way == "SIGKILL"


def check_time(shutdown, client, until):
    assert shutdown.elapsed(client) < (1.5 if hurried(shutdown) else until)


def test_the_exit_code_is_0_before_the_total_time(shutdown):
    if killed(shutdown):
        assert shutdown.code == -signal.SIGKILL
        return
    assert shutdown.code == 0
    assert shutdown.took < TOTAL


@pytest.mark.parametrize("kind", ["events", "stream"])
def test_a_stream_of_events_ends_properly_with_its_clean_up(shutdown, kind):
    seen = shutdown.clients[kind].seen
    if killed(shutdown):
        assert seen is None or not seen.endswith(b"0\r\n\r\n")
        return
    assert seen.endswith(b"\r\n0\r\n\r\n")
    check_time(shutdown, kind, GRACE)
    assert shutdown.app.wait_event(f"{kind} cleaned")["pool_closed"] is False


@pytest.mark.parametrize("kind", ["ws", "deaf"])
def test_a_websocket_is_closed_with_1012_and_the_app_cleans_up(shutdown, kind):
    if killed(shutdown):
        assert shutdown.clients[kind].seen is None
        return
    assert shutdown.clients[kind].seen == 1012
    check_time(shutdown, kind, GRACE)
    if kind == "ws":
        assert shutdown.app.wait_event("ws told")["code"] == 1012
    if kind == "deaf" or not hurried(shutdown):  # hurried, what was only told is cancelled, too
        assert shutdown.app.wait_event(f"{kind} cleaned")["pool_closed"] is False


def test_a_slow_request_finishes_within_the_grace(shutdown):
    seen = shutdown.clients["slow"].seen
    if shutdown.way == "SIGTERM":
        assert seen.startswith(b"HTTP/1.1 200 OK\r\n")
        assert seen.endswith(b'"finished"')
        assert DELAY + 0.1 < shutdown.elapsed("slow") < GRACE
    elif not killed(shutdown):
        assert seen.startswith(b"HTTP/1.1 503 ")  # nobody has released it


@pytest.mark.parametrize("kind", ["endless", "transaction", "query", "body"])
def test_what_does_not_end_is_cancelled_with_clean_up_and_answered_503(shutdown, kind):
    seen = shutdown.clients[kind].seen
    if killed(shutdown):
        assert not seen
        return
    assert seen.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close\r\n" in seen.lower()
    assert b"The service is shutting down" in seen
    if not hurried(shutdown):
        assert shutdown.elapsed(kind) > GRACE - 0.1
    check_time(shutdown, kind, CLEANUP + 0.2)
    cleaned = shutdown.app.wait_event(f"{kind} cleaned")
    assert cleaned["pool_closed"] is False


def test_a_route_in_a_thread_is_answered_503_and_does_not_keep_the_process(shutdown):
    if killed(shutdown):
        assert not shutdown.clients["thread"].seen
        return
    assert shutdown.clients["thread"].seen.startswith(b"HTTP/1.1 503 ")
    shutdown.app.wait_line("time.sleep")  # the log shows where it stands


def test_background_work_ends_before_resources_close(shutdown):
    if killed(shutdown):
        assert "closed" not in shutdown.app.events()
        return
    for seconds in (0.7, 60):
        assert shutdown.app.wait_event("spawn ended", seconds=seconds)["pool_closed"] is False
    events = shutdown.app.events()
    assert ("spawn finished" in events) == (shutdown.way == "SIGTERM")
    assert events.index("closed") > max(at for at, name in enumerate(events) if name == "spawn ended")


def test_no_session_and_no_half_transaction_is_left_in_postgresql(shutdown, witness):
    asyncio.run(eventually(witness.has_no_session, within=BOUND))
    assert asyncio.run(witness.ask("SELECT * FROM witness")) == []


def test_an_idle_connection_is_closed(shutdown):
    assert not shutdown.clients["idle"].seen
    if not killed(shutdown):
        assert shutdown.elapsed("idle") < GRACE


def test_readiness_turns_at_once_and_requests_are_served_during_the_delay(shutdown):
    if shutdown.way != "SIGTERM":
        return
    assert shutdown.ready.status == 503
    assert (shutdown.late.status, shutdown.late.body) == (200, b'"served"')
    assert shutdown.late.headers["connection"] == "close"


def test_plain_uvicorn_hangs_on_a_stream_of_events_and_this_one_ends_it(processes):
    plain, ours = processes.uvicorn("drain_app:app"), processes.freeloop("drain_app:app")
    streams = [run.connect().ask("/events") for run in (plain, ours)]
    for stream in streams:
        stream.read_until(b"data: 3\n\n")
    plain.process.send_signal(signal.SIGTERM)
    plain.wait_line("Waiting for connections to close|Waiting for background tasks")
    began = time.monotonic()
    assert ours.stop(timeout=BOUND) == 0
    assert time.monotonic() - began < 5  # of 9 s, of which 1 s is the delay
    assert streams[1].rest().endswith(b"0\r\n\r\n")
    assert ours.events()[-2:] == ["events cleaned", "closed"]

    streams[0].read_until(b"data: 30\n\n")  # it goes on
    assert plain.process.poll() is None
    assert "closed" not in plain.events()


def test_plain_uvicorn_refuses_connections_at_once_and_this_one_serves_during_the_delay(processes):
    plain = processes.uvicorn("drain_app:app")
    ours = processes.freeloop("drain_app:app", FREELOOP_DRAIN_DELAY=4)
    for run in (plain, ours):
        run.connect().ask("/endless")
        run.wait_event("endless")
    port = plain.port, ours.port
    began = time.monotonic()
    begin_shutdown(ours)
    plain.process.send_signal(signal.SIGTERM)
    while not refuses(port[0]):
        assert time.monotonic() - began < 3
    assert plain.process.poll() is None
    late = ours.get("/quick")
    assert (late.status, late.headers["connection"]) == (200, "close")
    while not refuses(port[1]):
        assert time.monotonic() - began < 9
    assert time.monotonic() - began > 3.9


def test_plain_uvicorn_closes_resources_under_running_handlers_and_this_one_last(processes):
    plain = processes.uvicorn("drain_app:app", "--timeout-graceful-shutdown", "1")
    ours = processes.freeloop("drain_app:app", FREELOOP_SHUTDOWN_TIMEOUT=2, FREELOOP_DRAIN_DELAY=0)
    for run in (plain, ours):
        run.connect().ask("/endless")
        run.wait_event("endless")
        run.process.send_signal(signal.SIGTERM)
    for run in (plain, ours):
        run.wait(BOUND)
    assert "closed" in plain.events()
    assert ("endless cleaned" not in plain.events()) or plain.index("closed") < plain.index("endless cleaned")
    assert ours.events()[-2:] == ["endless cleaned", "closed"]
    assert ours.wait_event("endless cleaned")["pool_closed"] is False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_blocked_loop_ends_at_the_total_time_with_its_stack_in_the_log(processes, number):
    app = processes.freeloop("drain_app:app", FREELOOP_SHUTDOWN_TIMEOUT=3)
    app.connect().ask("/block?seconds=50")
    app.wait_event("block")
    began = time.monotonic()
    assert app.stop(number, timeout=BOUND) == 0
    assert 2.5 < time.monotonic() - began < 3
    overdue = app.wait_for(lambda record: "stacks" in record, timeout=BOUND)
    assert "FREELOOP_SHUTDOWN_TIMEOUT" in overdue["event"]
    assert "time.sleep(seconds)" in overdue["stacks"]


def test_nothing_open_ends_right_after_the_delay(processes):
    app = processes.freeloop("drain_app:app", FREELOOP_DRAIN_DELAY=0)
    assert app.get("/quick").status == 200
    began = time.monotonic()
    assert app.stop(timeout=BOUND) == 0
    assert time.monotonic() - began < 2
    assert not any("stacks" in record for record in app.records)


@pytest.mark.parametrize("path", ["/thread?seconds=60", "/to-thread"])
def test_a_thread_whose_client_has_gone_may_use_the_total_time_and_no_more(processes, path):
    app = processes.freeloop("drain_app:app", FREELOOP_SHUTDOWN_TIMEOUT=2, FREELOOP_DRAIN_DELAY=0)
    with app.connect() as client:
        client.ask(path)
        app.wait_event(path[1:].partition("?")[0])
    app.wait_for(lambda record: record.get("cancelled_by") == "disconnect", timeout=BOUND)
    began = time.monotonic()
    assert app.stop(timeout=BOUND) == 0
    assert 1.5 < time.monotonic() - began < 2
    app.wait_line("time.sleep")
    assert app.events()[-1] == "closed"


def test_a_second_signal_waits_for_no_thread(processes):
    app = processes.freeloop("drain_app:app", FREELOOP_SHUTDOWN_TIMEOUT=30, FREELOOP_DRAIN_DELAY=20)
    thread = app.connect().ask("/thread?seconds=60")
    app.wait_event("thread")
    begin_shutdown(app)
    began = time.monotonic()
    assert app.stop(timeout=BOUND) == 0
    assert time.monotonic() - began < 5
    assert thread.rest().startswith(b"HTTP/1.1 503 ")
    assert app.events()[-1] == "closed"


def test_a_signal_after_all_has_closed_hurries_and_does_not_kill(processes):
    app = processes.freeloop("drain_app:app", FREELOOP_SHUTDOWN_TIMEOUT=30, FREELOOP_DRAIN_DELAY=0)
    with app.connect() as client:
        client.ask("/thread?seconds=60")
        app.wait_event("thread")
    app.wait_for(lambda record: record.get("cancelled_by") == "disconnect", timeout=BOUND)
    begin_shutdown(app)
    app.wait_for(lambda record: "threads still run" in record.get("event", ""), timeout=BOUND)
    began = time.monotonic()
    assert app.stop(timeout=BOUND) == 0
    assert time.monotonic() - began < 5  # of 30 s


def test_an_answer_reaches_a_slow_reader_whole(processes):
    app = processes.freeloop("drain_app:app", FREELOOP_DRAIN_DELAY=0)
    client = app.connect().ask("/large")
    client.read_until(b"\r\n\r\n")
    app.wait_for(lambda record: record.get("path") == "/large", timeout=BOUND)  # for the app it is over
    begin_shutdown(app)
    while not refuses(app.port):
        pass
    assert len(client.rest()) == 20_000_000
    assert app.wait(BOUND) == 0


def test_a_reader_that_never_reads_does_not_keep_the_process(processes):
    app = processes.freeloop("drain_app:app", FREELOOP_SHUTDOWN_TIMEOUT=2, FREELOOP_DRAIN_DELAY=0)
    app.connect().ask("/large")
    app.wait_for(lambda record: record.get("path") == "/large", timeout=BOUND)
    assert app.stop(timeout=BOUND) == 0
    assert app.events()[-1] == "closed"


def test_what_has_reached_the_kernel_is_answered(processes):
    """A request on an idle connection and a new connection, while the loop is blocked to the delay's end."""
    app = processes.freeloop("drain_app:app", FREELOOP_DRAIN_DELAY=0.5)
    idle, blocker = app.connect(), app.connect()
    assert idle.get("/quick").status == 200
    begin_shutdown(app)
    blocker.ask("/block?seconds=1")
    app.wait_event("block")
    idle.ask("/quick")
    new = [app.connect() for _ in range(20)]
    for each in new:
        each.ask("/quick")
    assert [each.answer().status for each in (blocker, idle, *new)] == [200] * 22
    assert app.wait(BOUND) == 0


def test_a_connection_without_a_request_holds_nothing_up(processes):
    app = processes.freeloop("drain_app:app", FREELOOP_DRAIN_DELAY=0)
    silent, half = app.connect(), app.connect().send(b"GET /quick HTT")
    assert app.get("/quick").status == 200
    began = time.monotonic()
    assert app.stop(timeout=BOUND) == 0
    assert time.monotonic() - began < 4
    assert (silent.rest(), half.rest()) == (b"", b"")


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("path", ["/flood", "/flood/events"])
def test_a_stream_that_nobody_reads_cleans_up_before_resources_close(processes, path, signals):
    app = processes.freeloop("drain_app:app", FREELOOP_SHUTDOWN_TIMEOUT=3, FREELOOP_DRAIN_DELAY=0)
    app.connect().ask(path).read_until(b"\r\n\r\n")
    app.wait_event("flood")
    began = time.monotonic()
    for _ in range(signals):
        begin_shutdown(app)
    assert app.wait(BOUND) == 0
    assert time.monotonic() - began < 3
    assert app.events()[-2:] == ["flood cleaned", "closed"]


def test_a_stream_of_events_that_begins_when_the_others_have_ended_is_ended_too(processes):
    app = processes.freeloop("drain_app:app", FREELOOP_SHUTDOWN_TIMEOUT=30, FREELOOP_DRAIN_DELAY=0.5)
    late, others = app.connect().ask("/late"), app.connect().ask("/events")
    app.wait_event("late")
    others.read_until(b"\n\n")
    begin_shutdown(app)
    app.get("/release")
    began = time.monotonic()
    assert others.rest().endswith(b"\r\n0\r\n\r\n")
    assert "stream" not in app.events()
    assert late.rest().endswith(b"\r\n0\r\n\r\n")
    assert app.wait(BOUND) == 0
    assert time.monotonic() - began < 10  # the grace is 20 s
    assert app.events()[-2:] == ["stream cleaned", "closed"]


def test_a_websocket_that_opens_when_the_others_were_closed_is_closed_too(processes):
    app = processes.freeloop("drain_app:app", FREELOOP_SHUTDOWN_TIMEOUT=30, FREELOOP_DRAIN_DELAY=0)
    silent = app.connect()
    assert app.get("/quick").status == 200  # the connection before it has arrived, too
    begin_shutdown(app)
    began = time.monotonic()
    while not refuses(app.port):
        pass
    silent.ask(
        "/deaf",
        headers=[
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        ],
    )
    assert silent.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    assert b"\x03\xf4" in silent.rest()  # 1012, in a close frame
    assert app.wait(BOUND) == 0
    assert time.monotonic() - began < 10
    assert app.events()[-2:] == ["deaf cleaned", "closed"]


def test_sigkill_leaves_nothing_that_the_next_start_stumbles_over(processes):
    first = processes.freeloop("drain_app:app")
    stream = first.connect().ask("/events")
    stream.read_until(b"\n\n")
    port = first.port
    first.process.kill()
    assert first.wait() == -signal.SIGKILL
    second = processes.freeloop("drain_app:app", "--port", port, port=False)
    assert second.get("/quick").status == 200
    assert second.stop() == 0


def test_the_limit_of_requests_ends_the_process_in_order_too(processes):
    app = processes.freeloop(
        "drain_app:app", "--limit-max-requests", "1", FREELOOP_SHUTDOWN_TIMEOUT=2, FREELOOP_DRAIN_DELAY=0
    )
    thread = app.connect().ask("/thread?seconds=60")
    app.wait_event("thread")
    began = time.monotonic()
    assert app.get("/quick").status == 200
    assert app.wait(BOUND) == 0
    assert time.monotonic() - began < 2.5
    assert thread.rest().startswith(b"HTTP/1.1 503 ")


def test_after_the_limit_of_requests_the_first_signal_hurries_nothing_and_the_second_does(processes):
    app = processes.freeloop(
        "drain_app:app", "--limit-max-requests", "1", FREELOOP_SHUTDOWN_TIMEOUT=30, FREELOOP_DRAIN_DELAY=5
    )
    slow, endless = app.connect().ask("/slow"), app.connect().ask("/endless")
    app.wait_event("slow")
    app.wait_event("endless")
    assert app.get("/quick").status == 200
    while app.get("/readyz").status != 503:  # uvicorn looks ten times a second whether the limit is reached
        pass
    begin_shutdown(app)
    app.get("/release")  # served: the delay goes on
    assert slow.rest().endswith(b'"finished"')
    began = time.monotonic()
    assert app.stop(timeout=BOUND) == 0
    assert time.monotonic() - began < 5
    assert endless.rest().startswith(b"HTTP/1.1 503 ")


def test_after_the_limit_of_requests_an_interrupt_ends_the_delay(processes):
    app = processes.freeloop(
        "drain_app:app", "--limit-max-requests", "1", FREELOOP_SHUTDOWN_TIMEOUT=60, FREELOOP_DRAIN_DELAY=30
    )
    assert app.get("/quick").status == 200
    while app.get("/readyz").status != 503:
        pass
    began = time.monotonic()
    assert app.stop(signal.SIGINT, timeout=BOUND) == 0
    assert time.monotonic() - began < 5


def test_the_limit_of_requests_is_put_off_by_chance(processes):
    app = processes.freeloop(
        "drain_app:app", "--limit-max-requests", "1", "--limit-max-requests-jitter", 10**9
    )
    # uvicorn renews the date when it looks at the limit: by the third one it has done so since the first.
    dates = set()
    while len(dates) < 3:
        dates.add(app.get("/quick").headers["date"])
    assert app.get("/readyz").status == 200
    assert app.stop() == 0
