"""Ends connections without losing what is on its way on them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable
from typing import Any, Final

FIRST_REQUEST: Final = 0.5  # seconds that a connection may take to send the request it was opened for


class Farewell:
    """Tells each connection of a server once to close."""

    def __init__(self) -> None:
        self._told: set[Any] = set()
        self._waiting: dict[Any, float] = {}

    def bid(self, connections: Iterable[Any]) -> None:
        """Tell each to close behind its answer, or now where it has nothing to answer.

        To be called until there is none left: not each of them can be told at any time.

        Args:
            connections: uvicorn's protocols.
        """
        now = time.monotonic()
        for connection in set(connections) - self._told:
            if getattr(connection, "cycle", False) is None:
                # It has sent no request yet, and was opened for one.
                ready = now - self._waiting.setdefault(connection, now) > FIRST_REQUEST
            else:
                # uvicorn would answer 500 to a WebSocket that the app has yet to accept.
                ready = getattr(connection, "handshake_complete", True)
            if ready and not _has_unread(connection):
                self._told.add(connection)
                self._waiting.pop(connection, None)
                _hold_back(connection)
                connection.shutdown()


def _hold_back(connection: Any) -> None:  # noqa: ANN401 - one of uvicorn's protocols
    """Let the rest of an answer that has begun travel in full packets: its last one tells the end, too.

    Its headers have promised a connection that stays. A proxy that sees the answer's end before the
    connection's would send the next request there, and lose it.
    """
    sock = connection.transport.get_extra_info("socket")
    if getattr(getattr(connection, "cycle", None), "response_started", False) and hasattr(socket, "TCP_CORK"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as held:
            held.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)


def _has_unread(connection: Any) -> bool:  # noqa: ANN401 - as above
    """Whether a request has come that the loop has not read yet: to close now would lose it."""
    sock = connection.transport.get_extra_info("socket")
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as peeked:
        return bool(peeked.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False
