"""The real process, started as the README says, in a folder and with an environment of its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import aiohttp
import pytest

from freeloop.testing.folders import wait_until_stopped

ROOT = Path(__file__).parents[1]
START_TIMEOUT = 60


class Service:
    """A running ``run.py serve``: its URL, its log records, and ways to end it."""

    def __init__(self, process):
        self.process = process
        self.records = []
        self.lines = []
        self._arrived = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._arrived:
                self.lines.append(line)
                with contextlib.suppress(json.JSONDecodeError):
                    self.records.append(json.loads(line))
                self._arrived.notify_all()
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()

    def wait_for(self, wanted, *, timeout=START_TIMEOUT):
        """Return the first log record that ``wanted`` accepts; it may have come already."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._ended or any(map(wanted, self.records)), timeout)
            for record in self.records:
                if wanted(record):
                    return record
        raise AssertionError("the record did not come; the output was:\n" + "".join(self.lines))

    @property
    def url(self):
        return self.wait_for(lambda record: record.get("event") == "listening")["url"]

    def stop(self, sig=signal.SIGTERM, *, timeout=30):
        self.process.send_signal(sig)
        return self.wait(timeout)

    def wait(self, timeout=30):
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code


@contextlib.contextmanager
def make_data_dir():
    """Make a data folder that the unprivileged user of the embedded server can reach, also as root."""
    folder = Path(tempfile.mkdtemp(prefix="freeloop-test-"))
    folder.chmod(0o755)
    yield folder
    # The keeper stops PostgreSQL only now that the last service is gone.
    for server in (*folder.glob("postgresql"), *folder.glob("*/postgresql")):
        wait_until_stopped(server.parent)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def data_dir():
    """The data folder of :func:`start` where a test gives no other."""
    with make_data_dir() as folder:
        yield folder


@pytest.fixture(scope="session")
def start(data_dir):
    """Start the service; what still runs at the end is killed."""
    running = []

    def start(*arguments, command=(sys.executable, str(ROOT / "run.py")), cwd=ROOT, **environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FREELOOP_")}
        process = subprocess.Popen(
            [*command, "serve", "--port", "0", *arguments],
            # No load balancer has to turn away first.
            env={**clean, "FREELOOP_DATA_DIR": str(data_dir), "FREELOOP_DRAIN_DELAY": "0", **environment},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(Service(process))
        return running[-1]

    yield start
    for service in running:
        if service.process.poll() is None:
            service.process.kill()
            service.wait()
        service.process.stderr.close()


@pytest.fixture(scope="session")
def service(start):
    """One service for all tests that leave it as it was."""
    running = start()
    assert running.url
    return running


@pytest.fixture
async def client(service):
    async with aiohttp.ClientSession(service.url) as session:
        yield session
