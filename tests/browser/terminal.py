"""Commands in a terminal of their own."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading


def where(shop):
    """Return the environment by which a command finds a shop."""
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
