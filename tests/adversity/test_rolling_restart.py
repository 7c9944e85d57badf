"""Deploys under load: two instances behind nginx, and two workers without it; no request fails."""

import asyncio
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from freeloop.testing import eventually
from run_process import BOUND, Processes

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
RATE = 200  # requests a second
STREAMS = 20
CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log error;
events {{ worker_connections 8192; }}  # with fewer, a machine that is busy makes nginx drop idle clients
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream app {{
        server 127.0.0.1:{first} max_fails=0;
        server 127.0.0.1:{second} max_fails=0;
        keepalive 8;
        # Shorter than the drain delay: nginx, and not the app, closes connections that idle.
        keepalive_timeout 500ms;
    }}
    server {{
        listen unix:{folder}/http.sock;
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            # Who refuses the connection is passed over; a request that was sent once is not sent again.
            proxy_next_upstream error;
        }}
    }}
}}
"""


class Load:
    """Requests at a steady rate whatever becomes of them, and streams that connect again when they end."""

    def __init__(self, session, base):
        self._session = session
        self._base = base
        self.failed = []
        self.answers = []
        self.ended = 0
        self.open = 0
        self._tasks = set()

    async def run(self):
        """Send the requests until cancelled; then let those under way end."""
        loop = asyncio.get_running_loop()
        streams = [asyncio.create_task(self._stream()) for _ in range(STREAMS)]
        began = loop.time()
        number = 0
        try:
            while True:
                number += 1
                task = asyncio.create_task(self._ask())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                await asyncio.sleep(began + number / RATE - loop.time())
        finally:
            async with asyncio.timeout(BOUND):
                await asyncio.gather(*self._tasks)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    async def _ask(self):
        try:
            async with self._session.post(f"{self._base}/pid") as answer:
                text = await answer.text()
                if answer.status == 200:
                    self.answers.append(int(text))
                else:
                    self.failed.append((answer.status, text))
        except Exception as error:  # noqa: BLE001 - each is a request that failed
            self.failed.append(error)

    async def _stream(self):
        while True:
            try:
                async with self._session.get(f"{self._base}/events") as answer:
                    if answer.status != 200:
                        self.failed.append((answer.status, "stream"))
                        return
                    self.open += 1
                    # Without its last chunk the stream would raise.
                    async for _ in answer.content:
                        pass
                    self.ended += 1
            except aiohttp.ClientError as error:
                self.failed.append(error)
                return


@asynccontextmanager
async def loaded(connector, base):
    timeout = aiohttp.ClientTimeout(total=None, sock_read=BOUND)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        load = Load(session, base)
        running = asyncio.create_task(load.run())
        await eventually(lambda: load.open == STREAMS and len(load.answers) > RATE, within=BOUND)
        yield load
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def processes():
    with Processes() as processes:
        yield processes


@pytest.fixture
def folder():
    folder = Path(tempfile.mkdtemp(prefix="freeloop-nginx-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def nginx(folder):
    running = []

    def start(first, second):
        (folder / "conf").write_text(CONFIG.format(folder=folder, first=first, second=second))
        running.append(subprocess.Popen([NGINX, "-p", folder, "-e", "stderr", "-c", folder / "conf"]))
        path = folder / "http.sock"
        until = time.monotonic() + BOUND
        while not path.exists():
            assert time.monotonic() < until
            assert running[-1].poll() is None
        return str(path)

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")
async def test_a_rolling_restart_behind_nginx_fails_no_request(processes, nginx):
    def start(port=0):
        app = processes.freeloop("drain_app:app", "--port", port, "--no-access-log", port=False)
        return app, app.port

    instances, ports = [], []
    for _ in range(2):
        app, port = await asyncio.to_thread(start)
        instances.append(app)
        ports.append(port)
    path = await asyncio.to_thread(nginx, *ports)
    async with loaded(aiohttp.UnixConnector(path, limit=0), "http://test") as load:
        old = {each.process.pid for each in instances}
        await eventually(lambda: old <= set(load.answers), within=BOUND)
        for at, instance in enumerate(instances):
            assert await asyncio.to_thread(instance.stop, timeout=BOUND) == 0
            again, _ = await asyncio.to_thread(start, ports[at])
            pid = again.process.pid
            await eventually(lambda pid=pid: pid in load.answers, within=BOUND)
        await eventually(lambda: load.open == load.ended + STREAMS, within=BOUND)
        before = len(load.answers)
        await eventually(lambda: len(load.answers) > before + RATE, within=BOUND)
    log = await asyncio.to_thread(Path(path).with_name("error.log").read_text)
    assert load.failed == [], [line[20:110] for line in log.splitlines() if "(111:" not in line]
    assert load.ended >= STREAMS  # each of them was on one of the two
    assert len(load.answers) > 3 * RATE


async def test_sighup_replaces_two_workers_and_fails_no_request(processes):
    def start():
        app = processes.freeloop("drain_app:app", "--workers", "2", "--no-access-log")
        return app, app.port

    app, port = await asyncio.to_thread(start)
    async with loaded(aiohttp.TCPConnector(limit=0, force_close=True), f"http://127.0.0.1:{port}") as load:
        await eventually(lambda: len(set(load.answers)) == 2, within=BOUND)
        old = set(load.answers)
        app.process.send_signal(signal.SIGHUP)
        await eventually(lambda: len(set(load.answers[-RATE:]) - old) == 2, within=BOUND)
        await eventually(lambda: not set(load.answers[-RATE:]) & old, within=BOUND)
        await eventually(lambda: load.open == load.ended + STREAMS, within=BOUND)
    assert load.failed == []
    assert load.ended >= STREAMS
    assert await asyncio.to_thread(app.stop, timeout=BOUND) == 0
