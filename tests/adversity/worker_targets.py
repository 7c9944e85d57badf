"""A supervisor with real workers, as a process of its own; what happens is one line of JSON each on stdout.

What a worker does beside answering, the files of one folder say: ``broken`` ends each start with exit code 3,
``stuck`` makes it hang, ``gate`` is a lock that it waits for while its target is loaded; a worker that finds
``deaf`` never stops, with ``lingers`` it stops at the second signal, with ``closes`` it listens no more after
the first.
"""

import fcntl
import importlib.machinery
import importlib.util
import json
import logging
import os
import select
import signal
import socket
import sys
from pathlib import Path

# The supervisor needs nothing of the package's own __init__, which imports the framework for a second or
# two: each of many processes here would.
_found = importlib.machinery.PathFinder.find_spec("freeloop")
sys.modules["freeloop"] = importlib.util.module_from_spec(_found)

from freeloop.server.workers import supervise  # noqa: E402 - after the line above


def emit(event, **details):
    line = json.dumps({"event": event, "pid": os.getpid(), **details}) + "\n"
    os.write(1, line.encode())  # one write: lines of several processes do not mix


class Events(logging.Handler):
    def emit(self, record):
        emit("log", level=record.levelname, message=record.getMessage())


class Target:
    """Answers each connection with the id of its process and the signals that it has had."""

    def __init__(self, folder):
        self.folder = folder

    def __setstate__(self, state):
        self.__dict__ = state
        if (self.folder / "gate").exists():
            emit("loading")
            with (self.folder / "gate").open() as gate:
                fcntl.flock(gate, fcntl.LOCK_SH)

    def __call__(self, sockets, ready):
        serve(self.folder, sockets, ready)


def serve(folder, sockets, ready):
    if (folder / "broken").exists():
        sys.exit(3)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    if (folder / "stuck").exists():
        emit("stuck")
        while True:
            signal.pause()
    patience = 99 if (folder / "deaf").exists() else 2 if (folder / "lingers").exists() else 1
    had = []
    emit("serving")
    ready()
    while len(had) < patience:
        readable, _, _ = select.select([reader, *sockets], [], [])
        for sock in sockets:
            if sock in readable:
                answer(sock, reader, had)
        take_signals(reader, had)
        if had and (folder / "closes").exists() and sockets:
            sockets.pop().close()
            emit("closed")
    emit("ended", had=had)


def answer(sock, reader, had):
    try:
        client, _ = sock.accept()
    except BlockingIOError:  # another worker was faster
        return
    with client:
        client.settimeout(10)
        asked = client.recv(64).decode()
        take_signals(reader, had)  # what was sent before the question counts in the answer
        client.sendall(json.dumps({"pid": os.getpid(), "had": had}).encode())
    if asked == "exit":
        sys.exit(5)


def take_signals(reader, had):
    try:
        numbers = os.read(reader, 64)
    except BlockingIOError:
        return
    for number in numbers:
        had.append(signal.Signals(number).name)
        emit("signal", name=had[-1], count=len(had))


def main():
    folder, workers, shutdown_timeout, start_timeout = sys.argv[1:]
    logger = logging.getLogger("freeloop.workers")
    logger.setLevel(logging.INFO)
    logger.addHandler(Events())
    bound = socket.create_server(("127.0.0.1", 0), backlog=128)
    bound.setblocking(False)
    emit("bound", port=bound.getsockname()[1])
    code = supervise(
        Target(Path(folder)),
        [bound],
        workers=int(workers),
        shutdown_timeout=float(shutdown_timeout),
        start_timeout=float(start_timeout),
    )
    emit("returned", code=code)
    sys.exit(code)


if __name__ == "__main__":
    main()
