"""Walks through a page as its reader does: writes its files, runs its commands, compares what comes.

A block with a title is a file: ``main.py`` is written, ``main.py (top)`` is put before what is there, and
``main.py (end)`` behind it. A block of commands is run by bash; the block of json or text behind it is the
output that must come within a bound, where ``…`` stands for anything. ``freeloop run`` is a server: it takes
the place of the one before, on a port of its own, which the commands then ask in place of 8000.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from run_process import Run

BOUND = 20  # seconds that a command, or the wait for its output, may take


class Walk:
    """A reader at work.

    Args:
        folder: Where the reader is.
        python: Of the environment that the reader has activated.
        environment: Variables beside those of the tests, without our settings.

    Attributes:
        seconds: How long each command took at last, by its text.
    """

    def __init__(self, folder, python=sys.executable, **environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FREELOOP_")}
        path = f"{Path(python).parent}{os.pathsep}{clean['PATH']}"
        self.folder = folder
        self.python = python
        self.environment = {**clean, "PATH": path, "PYTHONUNBUFFERED": "1", **environment}
        self.server = None
        self.seconds = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.server is not None and self.server.process.poll() is None:
            self.server.process.kill()
            self.server.wait()
            self.server.process.stderr.close()

    def take(self, blocks):
        """Do what the blocks say, in order; those that are not run are left out."""
        todo = [block for block in blocks if not block.reason]
        for block, following in zip(todo, [*todo[1:], None], strict=True):
            if block.title:
                self.write(block)
            elif block.language == "sh":
                expected = following and following.language in {"json", "text"} and not following.title
                self.run(block, following.text if expected else "")
            else:
                assert block.language in {"json", "text"}, f"{block}: nobody knows how to take this"

    def write(self, block):
        name, _, how = block.title.partition(" ")
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        before = path.read_text("utf-8") if how else ""
        texts = {"": [block.text], "(top)": [block.text, before], "(end)": [before, "\n\n", block.text]}
        path.write_text("".join(texts[how]), "utf-8")

    def run(self, block, expected):
        text = block.text.strip()
        if text.startswith("freeloop run "):
            self.start(text)
        else:
            self.command(text, expected.strip(), str(block))

    def start(self, command):
        self.stop()
        self.server = Run(
            subprocess.Popen(
                [self.python, "-m", *command.split(), "--port", "0"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        assert self.server.port

    def stop(self):
        """As Ctrl-C does."""
        if self.server is not None:
            assert self.server.stop(signal.SIGINT) == 0, "".join(self.server.lines)
            self.server.process.stderr.close()
            self.server = None

    def command(self, text, expected, place):
        port = self.server.port if self.server else 8000
        until = time.monotonic() + BOUND
        while True:
            started = time.monotonic()
            done = subprocess.run(
                ["bash", "-euc", text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=BOUND,
                check=False,
            )
            self.seconds[text] = time.monotonic() - started
            if done.returncode == 0 and (not expected or _fits(done.stdout.strip(), expected)):
                return
            # A background task may not have ended yet: what its reader does is to ask again.
            assert expected, f"{place}: {done.stderr}"
            assert time.monotonic() < until, (
                f"{place}: expected {expected!r}, got {done.stdout!r} {done.stderr!r}; the server said:\n"
                + "".join(self.server.lines if self.server else [])
            )
            time.sleep(0.05)


def _fits(came, expected):
    pattern = ".*?".join(map(re.escape, _squeeze(expected).split("…")))
    return re.fullmatch(pattern, _squeeze(came), re.DOTALL) is not None


def _squeeze(text):
    """Leave out the spaces between tokens of JSON, which pages have for their readers."""
    return re.sub(r"\s*([{}\[\],:])\s*", r"\1", re.sub(r"\s+", " ", text))
