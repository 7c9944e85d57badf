"""The same truth in a terminal: top, blocks, tasks and doctor."""

import fcntl
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def where(shop):
    return {
        "FREELOOP_RUNTIME_DIR": str(shop.folder / "run"),
        "FREELOOP_DATA_DIR": str(shop.folder / "data"),
    }


class Terminal:
    """A command in a terminal of its own: what it has drawn, what is typed, and how large it is."""

    def __init__(self, *arguments, **environment):
        self.file, inner = pty.openpty()
        self.before = termios.tcgetattr(inner)
        self.resize(24, 100)
        self.drawn = ""
        self._more = threading.Condition()
        self.inner = inner
        # A session of its own, whose terminal this is: only then Ctrl-C and a new size reach the command.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, *arguments],
            env={**os.environ, "TERM": "xterm-256color", **environment},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.inner)

    def _read(self):
        while data := _read_some(self.file):
            with self._more:
                self.drawn += data.decode("utf-8", "replace")
                self._more.notify_all()
        os.close(self.file)

    def see(self, text, *, after=0):
        """Wait until something is drawn; return where."""
        with self._more:
            assert self._more.wait_for(lambda: text in self.drawn[after:], 30), self.drawn[-3000:]
            return self.drawn.index(text, after)

    def see_width(self, columns):
        """Wait until a whole picture is drawn that fills so many columns."""

        def find():
            for picture in self.drawn.split("\x1b[H")[-3:-1]:  # the last may be half of one
                lines = re.sub(r"\x1b\[[\d;?]*[a-z]", "", picture).splitlines()
                if {len(line) for line in lines} == {columns}:
                    return True
            return False

        with self._more:
            assert self._more.wait_for(find, 30), self.drawn[-3000:]

    def type(self, keys):
        os.write(self.file, keys.encode())

    def resize(self, rows, columns):
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


_RUN = (
    "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from freeloop.cli import main; main()"
)


def _read_some(file):
    try:
        return os.read(file, 65536)
    except OSError:  # nobody has the other end any more
        return b""


@pytest.fixture
def freeloop(shop):
    def run(*arguments, code=0, cwd=HERE):
        done = subprocess.run(
            [sys.executable, "-m", "freeloop", *arguments],
            env={**os.environ, **where(shop), "COLUMNS": "160"},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


def test_top_and_blocks_tell_of_a_blocked_loop(shop, freeloop):
    shop.get("/report")
    shop.ask("/wait")
    told = freeloop("top", "--once")
    assert "/report blocked the event loop for" in told
    told = json.loads(freeloop("top", "--json"))
    assert "blocked" in [each["code"] for each in told["sentences"]]
    told = freeloop("blocks", "Shop")
    assert "shop.py" in told
    assert "await asyncio.sleep" in told
    assert json.loads(freeloop("blocks", "--json"))["blocks"][0]["route"] == "/report"


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_top_on_a_terminal_follows_its_size_and_leaves_it_as_it_was(shop, key):
    with Terminal("top", **where(shop)) as terminal:
        shop.ask("/wait?seconds=20")
        terminal.see("\x1b[?1049h")  # the other screen
        terminal.see("/wait")
        terminal.see_width(100)
        terminal.resize(30, 60)
        terminal.see_width(60)
        terminal.type(key)
        assert terminal.process.wait(20) == 0
        terminal.see("\x1b[?1049l")
        terminal.see("\x1b[?25h")  # the cursor is shown again
        assert termios.tcgetattr(terminal.inner) == terminal.before


def see_now(shop, *codes):
    until = time.monotonic() + 30
    while not {*codes} <= (
        told := {each["code"] for each in json.loads(shop.get("/console/now.json"))["sentences"]}
    ):
        assert time.monotonic() < until, told
        time.sleep(0.2)


def test_blocks_ps_and_tasks_tell_each_trouble(shop, freeloop):
    shop.ask("/export?seconds=15", "/deadlock")
    shop.ask(*["/quotes"] * 25)
    see_now(shop, "breaker_open", "deadlock")
    told = freeloop("top", "--once")
    assert "quotes fails and is left alone" in told
    assert "Deadlock: " in told
    told = freeloop("ps")
    assert "/deadlock" in told
    assert "/export" in told
    id_ = json.loads(shop.get("/start/invoice"))
    shop.logged("task failed", task_id=id_)
    assert "ConnectionRefusedError: no printer for invoice 7" in freeloop("tasks", "list")
    (row,) = json.loads(freeloop("tasks", "list", "--state", "failed", "--json"))
    assert (row["id"], row["state"]) == (id_, "failed")
    assert json.loads(freeloop("tasks", "show", id_))["error"]["type"] == "ConnectionRefusedError"
    assert json.loads(freeloop("tasks", "retry", id_, "--json"))["done"] is True
    assert json.loads(freeloop("tasks", "cancel", id_, "--json"))["id"] == id_


def test_a_process_that_is_not_there(freeloop):
    freeloop("top", "no-such-app", "--once", code=1)


def test_doctor_finds_what_an_app_will_stumble_over(freeloop, tmp_path):
    (tmp_path / "main.py").write_text(
        "import time\nfrom fastapi import FastAPI\nfrom freeloop import Freeloop, deadline\n"
        "app = FastAPI()\nkit = Freeloop(app)\n"
        "@app.get('/a')\n@deadline(None)\nasync def a():\n    time.sleep(1)\n"
        "@app.get('/b')\ndef b():\n    pass\n"
    )
    found = json.loads(freeloop("doctor", "main:app", "--json", code=1, cwd=tmp_path))
    assert {(each["check"], each["severity"]) for each in found} == {
        ("calls", "problem"),
        ("deadline", "problem"),
        ("sync", "note"),
    }
    assert freeloop("doctor", "shop.py").startswith("0 problems")


def test_what_takes_longer_than_a_second_says_what_it_does():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://somebody@127.0.0.1:{silent.getsockname()[1]}/shop"
        with Terminal("doctor", str(HERE / "shop.py"), FREELOOP_DATABASE_URL=url) as terminal:
            shown = terminal.see("Looking at the app")
            told = terminal.see("FREELOOP_DATABASE_URL: ", after=shown)
            assert "\x1b[2K" in terminal.drawn[shown:told]  # what was shown is gone by then
            assert terminal.process.wait(20) == 1
