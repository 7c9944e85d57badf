"""Answers that leave together.

uvicorn hands the head of an answer and its body to the transport one after the other, and both asyncio's and
uvloop's send each at once: two system calls and two packets for an answer. What is more, on the same machine
(a proxy in front, a benchmark) each wakes up its reader, which has gone to sleep again before the next one
comes; and to wake up a sleeping process takes longer than the answer itself. What the tasks of a loop write
in one turn is therefore sent at the end of that turn, one right behind the other.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, Protocol

_MOST: Final = 32  # answers that wait for each other at most
_LONGEST: Final = 0.001  # s; after which the next answer waits for no others
_COPIED: Final = 65536  # bytes; more is not copied to stand behind what is held


class Outbox:
    """What was written in this turn of one loop."""

    __slots__ = ("_full", "_since")

    def __init__(self) -> None:
        self._full: list[Corked] = []
        self._since = 0.0

    def add(self, transport: Corked) -> None:
        """Send what the transport holds at the end of this turn, or sooner."""
        now = time.monotonic()
        if not self._full:
            self._since = now
            asyncio.get_running_loop().call_soon(self.flush)
        self._full.append(transport)
        if len(self._full) >= _MOST or now - self._since > _LONGEST:
            self.flush()

    def flush(self) -> None:
        """Send everything."""
        full, self._full = self._full, []
        for transport in full:
            transport.flush()


class Watcher(Protocol):
    """Whoever wants to know of the end of a connection."""

    def lose(self) -> None:
        """Hear that the connection is gone."""


class Corked:
    """A transport that holds what is written until the loop's turn ends.

    Args:
        transport: What sends it.
        outbox: That of the loop.

    Attributes:
        watcher: Who is told when the connection is lost: the request that it carries now.
    """

    __slots__ = ("_held", "_outbox", "_transport", "watcher")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._held = b""
        self.watcher: Watcher | None = None

    def lose(self) -> None:
        """Tell the watcher that the connection is lost."""
        if self.watcher is not None:
            self.watcher.lose()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``, a little later where it is short."""
        if len(data) > _COPIED:
            self.flush()
            self._transport.write(data)
        elif self._held:
            self._held += data
            if len(self._held) > _COPIED:
                self.flush()
        elif data:
            self._held = bytes(data)
            self._outbox.add(self)

    def flush(self) -> None:
        """Send what is held."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def close(self) -> None:
        """Close, once what was written is sent."""
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        """Say that no more comes, behind what was written."""
        self.flush()
        self._transport.write_eof()

    def is_closing(self) -> bool:
        """Return whether it is closing or closed."""
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the transport has
        return getattr(self._transport, name)
