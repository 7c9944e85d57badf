"""One connection through a network that fails."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from freeloop.testing.faults import Fault, Way

# On, for 0 s: close() then sends RST where it would send FIN, and what was not sent yet is dropped.
_LINGER: Final = struct.pack("ii", 1, 0)


class Link:
    """One connection: its two sides, and what goes wrong between them.

    Args:
        faults: what goes wrong.
        client: the side that is there first.

    Attributes:
        passed: how many bytes have passed so far, by where they went.
    """

    def __init__(self, faults: Sequence[Fault], client: asyncio.StreamWriter) -> None:
        self._faults = list(faults)
        self._sides = [client]
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._over = False
        self.passed: dict[Way, int] = {"client": 0, "server": 0}

    def join(self, server: asyncio.StreamWriter) -> None:
        """Add the other side; it ends at once where the connection is over."""
        self._sides.append(server)
        if self._over:
            _end(server, reset=True)

    def add(self, fault: Fault) -> None:
        """Let one thing more go wrong."""
        self._faults.append(fault)

    def heal(self) -> None:
        """Let nothing go wrong any more, and everything flow."""
        self._faults.clear()
        self._flowing.set()

    def stall(self, seconds: float | None) -> None:
        """Let nothing pass for so many seconds; None: until :meth:`heal`."""
        self._flowing.clear()
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self._flowing.set)

    def end(self, *, reset: bool) -> None:
        """End both sides, with RST or with FIN."""
        self._over = True
        # Its readers must come to their end too.
        self._flowing.set()
        for side in self._sides:
            _end(side, reset=reset)

    async def flow(self) -> None:
        """Wait until it is not stalled."""
        await self._flowing.wait()

    async def pass_on(self, toward: Way, size: int) -> int:
        """Let the faults that are due happen; return how many bytes may pass, 0 where it is over."""
        for fault in tuple(self._faults):
            if fault.toward != toward:
                continue
            left = fault.after - self.passed[toward]
            if left > 0:
                size = min(size, left)
            elif fault.kind == "split":
                size = min(size, fault.size)
            elif fault.kind == "delay":
                await asyncio.sleep(fault.seconds or 0)
            else:
                with suppress(ValueError):  # healed meanwhile
                    self._faults.remove(fault)
                if fault.kind == "stall":
                    self.stall(fault.seconds)
                else:
                    self.end(reset=fault.kind == "reset")
        await self.flow()
        return 0 if self._over else size


def _end(side: asyncio.StreamWriter, *, reset: bool) -> None:
    if not reset:
        side.close()
        return
    connection = side.get_extra_info("socket")
    # Gone already (which uvloop calls a negative number), or a Unix socket, which knows no RST.
    with suppress(OSError, ValueError, AttributeError):
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    side.transport.abort()
