"""The side that answers: a thread and a socket, for as long as an app is open."""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import orjson

from freeloop.events import wait_at_most
from freeloop.inspection.folder import path_of, prepare_folder

logger = logging.getLogger("freeloop.inspection")

Question: TypeAlias = Callable[[Mapping[str, Any]], Iterator[bytes]]
"""Answers a question, given as a JSON object, with JSON documents, one a line; called in our thread."""

_LONGEST_QUESTION: Final = 4096  # bytes
_LONGEST_ANSWER: Final = 64 * 2**20  # bytes
_READ_TIMEOUT: Final = 1.0  # seconds for a question to come: they are written at one go
_SEND_TIMEOUT: Final = 5.0  # seconds for a piece of the answer to be read
_ANSWER_TIMEOUT: Final = 30.0  # seconds for all of it
_STOP_TIMEOUT: Final = 2.0  # seconds
_PIECE: Final = 64 * 1024  # bytes sent at a time
_LONGEST_COMMAND: Final = 500  # characters of the command line


@asynccontextmanager
async def open_socket(
    folder: Path | None, name: str, questions: Mapping[str, Question]
) -> AsyncIterator[None]:
    """Answer questions for the block. Where that is not possible a warning says so, and the block runs.

    Besides ``questions`` there is always ``about``: which process and app this is.

    Args:
        folder: Where the socket is to be, closed to other users; None: there is none.
        name: The app's name; empty: it has none.
        questions: What answers each question.
    """
    if folder is None or not hasattr(socket, "AF_UNIX"):
        yield
        return
    thread = _Thread(folder, name, questions)
    thread.start()
    try:
        yield
    finally:
        await thread.stop()


class _Thread(threading.Thread):
    """Listens and answers, one client at a time: each has its bounds."""

    def __init__(self, folder: Path, name: str, questions: Mapping[str, Question]) -> None:
        # A daemon: a process that cannot end its loop in time must be able to end all the same.
        super().__init__(name="freeloop-inspection", daemon=True)
        self._folder = folder
        self._app = name
        self._questions = {**questions, "about": self._answer_about}
        self._began = time.time()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)

    async def stop(self) -> None:
        """End it, and wait until its socket is gone; 2 s at most."""
        with self._wake:
            with suppress(OSError):
                self._wake.send(b"x")
            # It may be in the middle of an answer that somebody reads slowly.
            await wait_at_most(self._ended, _STOP_TIMEOUT)

    def run(self) -> None:
        """Answer until it is stopped."""
        try:
            with self._woken:
                self._listen()
        except OSError as error:
            logger.warning("nobody can look into this process", extra={"reason": str(error)})
        finally:
            with suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._ended.set)

    def _listen(self) -> None:
        prepare_folder(self._folder)
        number = 0
        while (path := path_of(self._folder, os.getpid(), number)) in _ours:
            number += 1
        _ours.add(path)
        try:
            with socket.socket(socket.AF_UNIX) as listening:
                _bind(listening, path)
                try:
                    self._accept(listening)
                finally:
                    path.unlink(missing_ok=True)
        finally:
            _ours.discard(path)

    def _accept(self, listening: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listening, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._woken in ready:
                    return
                with suppress(OSError):  # the client has gone, or is too slow
                    client, _ = listening.accept()
                    with client:
                        self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        until = time.monotonic() + _ANSWER_TIMEOUT
        piece = bytearray()
        size = 0
        for line in self._answer(_read_line(client)):
            size += len(line)
            if size > _LONGEST_ANSWER or time.monotonic() > until:
                piece += _fail("the answer is too long, or took too long: it is cut here") + b"\n"
                break
            piece += line
            piece += b"\n"
            if len(piece) >= _PIECE:
                client.settimeout(_SEND_TIMEOUT)
                client.sendall(piece)
                piece.clear()
        client.settimeout(_SEND_TIMEOUT)
        client.sendall(piece)

    def _answer(self, line: bytes) -> Iterator[bytes]:
        """Yield the lines of the answer; the last one says that it is complete, or why not."""
        try:
            question = orjson.loads(line)
            asked = question["ask"]
            answer = self._questions[asked]
        except (ValueError, TypeError, KeyError):
            known = ", ".join(sorted(self._questions))
            yield _fail(f'expected a line such as {{"ask": "tree"}}; there are: {known}')
            return
        try:
            yield from answer(question)
        except Exception as error:
            logger.exception("a question could not be answered", extra={"question": asked})
            yield _fail(f"{asked} could not be answered: {type(error).__name__}: {error}")
        else:
            yield b'{"end":true}'

    def _answer_about(self, question: Mapping[str, Any]) -> Iterator[bytes]:
        del question
        yield orjson.dumps(
            {
                "pid": os.getpid(),
                "app": self._app,
                "command": " ".join(sys.argv)[:_LONGEST_COMMAND],
                "seconds": time.time() - self._began,
                "python": sys.version.split()[0],
            }
        )


_ours: Final[set[Path]] = set()
"""The sockets of this process: it may run several apps, each with its own."""


def _bind(listening: socket.socket, path: Path) -> None:
    """Listen at a path, in the place of a dead process that had the same number."""
    # Under another name first: one that is there and refuses is taken for dead, and removed.
    early = path.with_suffix(".new")
    early.unlink(missing_ok=True)
    listening.bind(str(early))
    early.chmod(0o600)
    listening.listen(8)
    early.rename(path)


def _read_line(client: socket.socket) -> bytes:
    """Read a line; what there is, where it is too long or does not come in time."""
    until = time.monotonic() + _READ_TIMEOUT
    line = b""
    while b"\n" not in line and len(line) <= _LONGEST_QUESTION:
        client.settimeout(max(0.001, until - time.monotonic()))
        try:
            received = client.recv(_LONGEST_QUESTION)
        except TimeoutError:
            break
        if not received:
            break
        line += received
    return line if len(line) <= _LONGEST_QUESTION else b""


def _fail(reason: str) -> bytes:
    return orjson.dumps({"error": reason})
