"""The side that asks: finds the processes of this user, and puts a question to one."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from freeloop.errors import InspectionFailed
from freeloop.inspection.folder import check_owner, list_sockets

_ABOUT_TIMEOUT: Final = 2.0  # seconds; it takes no look at anything


@dataclass(frozen=True, slots=True)
class Process:
    """A process, or one of several apps in it.

    Attributes:
        path: Its socket.
        pid: Its number.
        app: The app's name; empty: it has none.
        command: Its command line, cut.
        seconds: For how long the app has been open.
        python: Its version of Python.
        silent: Whether it did not even say who it is.
    """

    path: Path
    pid: int
    app: str = ""
    command: str = ""
    seconds: float = 0.0
    python: str = ""
    silent: bool = False

    @property
    def title(self) -> str:
        """What to call it: the app's name and the command line."""
        if self.silent:
            return "(does not answer)"
        return f"{self.app} ({self.command})" if self.app else self.command

    def matches(self, wanted: str) -> bool:
        """Whether somebody who writes this means it: its number, its name, or a part of its command line."""
        if wanted.isdigit():
            return int(wanted) == self.pid
        return wanted.lower() == self.app.lower() or wanted.lower() in self.command.lower()


def find_processes(folder: Path) -> list[Process]:
    """Return the live processes; sockets of dead ones are removed. Blocks.

    Args:
        folder: Where their sockets are.

    Raises:
        InspectionFailed: The folder is somebody else's, who could answer in their place.
    """
    try:
        # Root may look into the processes of any user, by naming their folder.
        check_owner(folder, os.geteuid() or folder.stat().st_uid)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InspectionFailed(f"nothing is asked: {error}") from None
    found = []
    for path in list_sockets(folder):
        try:
            about = next(iter(ask(path, "about", timeout=_ABOUT_TIMEOUT)))
            found.append(Process(path=path, **about))
        except ConnectionRefusedError:
            # Nobody listens, and it was put there by somebody who did.
            with suppress(OSError):  # it has gone meanwhile
                _remove(path)
        except (OSError, InspectionFailed, TypeError, StopIteration):
            # It ends just now, is stopped, or something in it holds the GIL.
            found.append(Process(path=path, pid=int(path.stem.partition("-")[0]), silent=True))
    return found


def _remove(path: Path) -> None:
    """Remove the socket of a dead process, and not that of a new one which has just taken its place."""
    aside = path.with_suffix(f".{threading.get_native_id()}")
    path.rename(aside)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ABOUT_TIMEOUT)
        try:
            connection.connect(str(aside))
        except ConnectionRefusedError:
            aside.unlink()
            return
        except OSError:  # it listens, and is busy
            pass
    aside.rename(path)


def ask(path: Path, question: str, *, timeout: float = 30.0, **details: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Put a question to a process and yield the lines of its answer. Blocks.

    Args:
        path: Its socket.
        question: Such as ``tree``.
        timeout: Seconds for the whole answer.
        details: What belongs to the question.

    Raises:
        ConnectionRefusedError: The process is dead.
        InspectionFailed: It does not answer in time, or does not know the question.
    """
    until = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps({"ask": question, **details}).encode() + b"\n")
            for line in _read_lines(connection, until):
                answer = json.loads(line)
                if "error" in answer:
                    raise InspectionFailed(answer["error"])
                if answer == {"end": True}:
                    return
                yield answer
        except TimeoutError:
            raise InspectionFailed(
                f"{path.stem} did not answer within {timeout:g} s: it is stopped, or something in it holds "
                "the GIL, and nobody can look before it lets go"
            ) from None
    raise InspectionFailed(f"{path.stem} ended in the middle of its answer")


def _read_lines(connection: socket.socket, until: float) -> Iterator[bytes]:
    rest = b""
    while True:
        connection.settimeout(max(0.001, until - time.monotonic()))
        try:
            received = connection.recv(256 * 1024)
        except ConnectionResetError:
            received = b""
        if not received:
            return
        *lines, rest = (rest + received).split(b"\n")
        yield from lines
