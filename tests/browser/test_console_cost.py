"""Watching costs the watched nothing that it would miss: 20 viewers, measured in the watched process."""

import contextlib
import select
import socket
import statistics
import threading
import time

PAGES = ("now", "requests", "blocks", "tree", "tasks", "database", "upstreams")
VIEWERS = 20
SECONDS, ROUNDS = 4.0, 4
MOST = 0.02  # of a core: what a process that is at its limit then serves less by


def test_twenty_viewers_take_two_percent_of_a_core_at_most(shop):
    shop.get("/report")
    shop.ask(*["/wait?seconds=50"] * 30, *["/fail", "/quotes"] * 25, "/deadlock")  # every page is full
    with viewers(shop.run.port):
        pass  # the first one loads the templates
    alone, watched = [], []
    for _ in range(ROUNDS):
        alone.append(measure(shop.run.process.pid))
        with viewers(shop.run.port):
            watched.append(measure(shop.run.process.pid))
    taken = [after - before for before, after in zip(alone, watched, strict=True)]
    assert statistics.median(taken) <= MOST, (alone, watched)


def test_a_page_is_sent_at_most_once_a_second(shop):
    began, received = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", shop.run.port), 30) as viewer:
        viewer.sendall(b"GET /console/now/live HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % shop.run.port)
        while received.count(b"event: sample\n") < 5:
            part = viewer.recv(65536)
            assert part, "the stream has ended"
            received += part
    assert time.monotonic() - began >= 3.9  # four pauses lie between five of them; a timer may end early


def measure(pid):
    """Return the share of a core that a process uses."""
    clock = (~pid << 3) | 2  # clock_getcpuclockid(3) of Linux
    before, at = time.clock_gettime(clock), time.monotonic()
    time.sleep(SECONDS)
    return (time.clock_gettime(clock) - before) / (time.monotonic() - at)


@contextlib.contextmanager
def viewers(port):
    """Follow the pages as browsers do, each on a connection of its own."""
    with contextlib.ExitStack() as stack:
        opened = []
        for number in range(VIEWERS):
            viewer = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            page = PAGES[number % len(PAGES)]
            viewer.sendall(f"GET /console/{page}/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            opened.append(viewer)
        for viewer in opened:
            while b"data:" not in (part := viewer.recv(65536)):
                assert part, "a stream has ended at its beginning"
        over = threading.Event()
        reader = threading.Thread(target=read, args=(opened, over))
        reader.start()
        stack.callback(reader.join)
        stack.callback(over.set)
        yield


def read(opened, over):
    while not over.is_set():
        for viewer in select.select(opened, [], [], 0.1)[0]:
            assert viewer.recv(1 << 20), "a stream has ended"
