"""Apps in processes of their own: under ``freeloop run``, and under plain uvicorn beside it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from service_process import Service

TESTS = Path(__file__).parent
BOUND = 60  # seconds that anything may take here


class Run(Service):
    """A running app: its output, its events, its clients, and ways to end it."""

    def __init__(self, process):
        super().__init__(process)
        self.clients = contextlib.ExitStack()

    @property
    def port(self):
        return int(self.wait_line(r"https?://(?:127\.0\.0\.1|localhost):(\d+)")[1])

    def wait_line(self, pattern):
        """Return the match in the first line that has one; it may have come already."""

        def find():
            return next(filter(None, (re.search(pattern, line) for line in list(self.lines))), None)

        with self._arrived:
            self._arrived.wait_for(lambda: self._ended or find(), BOUND)
        found = find()
        assert found, f"{pattern!r} did not come; the output was:\n" + "".join(self.lines)
        return found

    def wait_event(self, name, **details):
        """Return the first event of this name and with these details that the app has told."""
        wanted = {"app": name, **details}.items()
        return self.wait_for(lambda record: wanted <= record.items(), timeout=BOUND)

    def events(self):
        """Return the names of what the app has told so far."""
        return [record["app"] for record in list(self.records) if "app" in record]

    def index(self, name):
        return self.events().index(name)

    def connect(self):
        """Open a connection that is closed with the test."""
        return self.clients.enter_context(self._connect())

    def get(self, path, **options):
        with self._connect() as connection:
            return connection.get(path, **options)

    def _connect(self):
        return Connection(socket.create_connection(("127.0.0.1", self.port), BOUND))


class Processes:
    """Starts apps; what still runs at the end is killed."""

    def __init__(self):
        self._running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for run in self._running:
            if run.process.poll() is None:
                run.process.kill()
                run.wait()
            run.process.stderr.close()
            run.clients.close()

    def freeloop(self, *arguments, cwd=TESTS / "adversity", port=True, **environment):
        given = ("--port", "0") if port else ()
        return self._start("freeloop", "run", *arguments, *given, cwd=cwd, environment=environment)

    def uvicorn(self, *arguments, cwd=TESTS / "adversity", port=True, **environment):
        given = ("--port", "0") if port else ()
        return self._start("uvicorn", *arguments, *given, cwd=cwd, environment=environment)

    def command(self, *arguments, cwd=TESTS, **environment):
        return self._start("freeloop", *arguments, cwd=cwd, environment=environment)

    def _start(self, *command, cwd, environment, module=True):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FREELOOP_")}
        process = subprocess.Popen(
            [sys.executable, *(["-m"] if module else []), *map(str, command)],
            env={
                **clean,
                "PYTHONUNBUFFERED": "1",
                **{name: str(value) for name, value in environment.items()},
            },
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(Run(process))
        return self._running[-1]


class Connection:
    """A client that sees each byte."""

    def __init__(self, sock):
        self.sock = sock
        self.received = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)
        return self

    def ask(self, path, *, method="GET", headers=(), body=b""):
        lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return self.send("\r\n".join([*lines, "", ""]).encode() + body)

    def get(self, path, **options):
        return self.ask(path, **options).answer()

    def read_until(self, wanted):
        """Read until these bytes have come; return all that came up to their end."""
        while wanted not in self.received:
            data = self.sock.recv(65536)
            assert data, f"{wanted!r} did not come, but {self.received!r}"
            self.received += data
        head, _, self.received = self.received.partition(wanted)
        return head + wanted

    def answer(self):
        """Read one answer."""
        head = self.read_until(b"\r\n\r\n").decode("latin-1")
        status, *lines = head.strip().split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        answer = Answer(int(status.split()[1]), headers)
        if "content-length" in headers:
            length = int(headers["content-length"])
            while len(self.received) < length:
                data = self.sock.recv(65536)
                assert data, "the answer was cut"
                self.received += data
            answer.body, self.received = self.received[:length], self.received[length:]
        return answer

    def rest(self):
        """Read until the server closes; a reset raises."""
        parts = [self.received]
        while data := self.sock.recv(1_000_000):
            parts.append(data)
        return b"".join(parts)


class Answer:
    """Status, headers and body; ``body`` is empty where it comes in chunks."""

    def __init__(self, status, headers):
        self.status = status
        self.headers = headers
        self.body = b""

    def json(self):
        return json.loads(self.body)


def refuses(port):
    """Whether nobody takes connections on a port of loopback; reset: it closed in this very moment."""
    closed = contextlib.suppress(ConnectionRefusedError, ConnectionResetError)
    with closed, socket.create_connection(("127.0.0.1", port), BOUND):
        return False
    return True


__all__ = ["BOUND", "Answer", "Connection", "Processes", "Run", "refuses", "signal"]
