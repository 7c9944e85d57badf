"""A network that fails on purpose: it stands between a client and a real server, and follows a plan.

What goes wrong is decided without I/O (:class:`Fault`, :func:`plan_faults`), and for one seed always the
same: by the number of a connection and of the bytes that passed, never by the clock.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from freeloop.database.address import Address

Way: TypeAlias = Literal["client", "server"]
Kind: TypeAlias = Literal["reset", "close", "stall", "delay", "split"]
Upstream: TypeAlias = tuple[str, int] | Path

_CONNECT_TIMEOUT: Final = 5.0
_CLOSE_TIMEOUT: Final = 5.0
_READ: Final = 2**16
_KINDS: Final[tuple[Kind, ...]] = ("reset", "close", "stall", "delay", "split")
_WAYS: Final[tuple[Way, ...]] = ("client", "server")
# On, for 0 s: close() then sends RST where it would send FIN, and what was not sent yet is dropped.
_LINGER: Final = struct.pack("ii", 1, 0)
_PORT: Final = 5432


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one connection once so many bytes have passed.

    Args:
        kind: ``reset`` (RST, as after a crash) or ``close`` (FIN, as after an orderly end), both without the
            byte that comes next; ``stall``: nothing more passes, and nobody is told; ``delay``: each piece
            is held; ``split``: bytes are sent in small pieces.
        after: how many bytes pass unharmed first, 0 or more.
        toward: which bytes are meant: those that go to the ``client``, or to the ``server``.
        seconds: how long a piece is held (``delay``) or nothing passes (``stall``; None: until
            :meth:`FaultyNetwork.heal`).
        size: the most bytes of a piece (``split``), 1 or more.
    """

    kind: Kind
    after: int = 0
    toward: Way = "client"
    seconds: float | None = None
    size: int = 1

    def __post_init__(self) -> None:
        """Refuse what could never happen, or would never end."""
        if self.after < 0 or self.size < 1 or (self.seconds is not None and self.seconds < 0):
            raise ValueError(f"expected after >= 0, size >= 1 and seconds >= 0; got {self}")
        if self.kind == "delay" and self.seconds is None:
            raise ValueError("expected the seconds of a delay; got None")


Plan: TypeAlias = Callable[[int], Sequence[Fault]]
"""What goes wrong on the connection with that number; the first has number 0."""


def plan_faults(
    seed: int,
    *,
    share: float = 0.5,
    after: int = 4000,
    delay: float = 0.02,
    stall: float | None = None,
    kinds: Sequence[Kind] = _KINDS,
) -> Plan:
    """Return a plan that gives some connections one or two faults, at points between any two bytes.

    Args:
        seed: the plan of one seed is always the same.
        share: the part of the connections that get faults, 0 to 1.
        after: the most bytes that pass before a fault.
        delay: the most seconds that a piece is held.
        stall: the most seconds that a stall lasts; None: until :meth:`FaultyNetwork.heal`.
        kinds: which faults come into question.
    """

    def plan(number: int) -> Sequence[Fault]:
        # A generator for each connection: what one gets does not hang on when another was made.
        dice = random.Random(f"{seed}/{number}")  # noqa: S311 - a plan has to be repeatable, not secret
        if dice.random() >= share:
            return ()
        faults = []
        for _ in range(dice.choice((1, 1, 2))):
            kind = dice.choice(tuple(kinds))
            longest = delay if kind == "delay" else stall
            faults.append(
                Fault(
                    kind,
                    # Half of them early: the login, and the first statements, are the shortest messages.
                    after=int(dice.random() ** 2 * after),
                    toward=dice.choice(_WAYS),
                    seconds=None if longest is None else dice.random() * longest,
                    size=dice.choice((1, 2, 7, 64)),
                )
            )
        return tuple(faults)

    return plan


class FaultyNetwork:
    """A TCP proxy on loopback that forwards bytes to a server, unless a plan or a call says otherwise.

    An async context manager that lives in the running loop; use it from that loop only.

    ::

        async with FaultyNetwork(("127.0.0.1", 5432), plan=plan_faults(seed)) as network:
            database = Database(network.reach(address))
            ...
            network.cut()         # every connection ends now, with RST
            network.refuse()      # and a new one is refused
            ...
            network.heal()        # the wire is back, and the plan over

    A server that cannot be reached shows as a connection that is made and reset at once. On a network that
    stalls, connections are made (as the kernel of a frozen machine makes them), what the client sends is
    taken, and nothing comes back.

    Args:
        upstream: ``(host, port)`` of the server, or the path of its Unix socket.
        plan: what goes wrong on which connection; None: only what is called for.

    Attributes:
        port: where to connect instead, on :attr:`host`; stays the same through :meth:`refuse`.
        accepted: how many connections were made so far.
        passed: how many bytes were forwarded so far, by where they went.
    """

    host: Final = "127.0.0.1"

    def __init__(self, upstream: Upstream, *, plan: Plan | None = None) -> None:
        self._upstream = upstream
        self._plan = plan
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay = 0.0
        self._size: int | None = None
        self.port = 0
        self.accepted = 0
        self.passed: dict[Way, int] = {"client": 0, "server": 0}

    @classmethod
    def in_front_of(cls, address: Address, *, plan: Plan | None = None) -> Self:
        """Return one in front of the PostgreSQL at ``address``, which names one host or socket folder."""
        (arguments,) = address.attempts()
        host, port = arguments.get("host", "localhost"), arguments.get("port", _PORT)
        return cls(Path(host, f".s.PGSQL.{port}") if host.startswith("/") else (host, port), plan=plan)

    def reach(self, address: Address) -> Address:
        """Return ``address`` by way of this network: only the host and port are others."""
        return Address(
            dsn=address.dsn,
            host=self.host,
            port=self.port,
            user=address.user,
            database=address.database,
            password=address.password,
        )

    async def __aenter__(self) -> Self:
        # Bound and never listening, it keeps the port while new connections are refused.
        self._place = _bind(self.host, 0)
        self.port = self._place.getsockname()[1]
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self._place.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_TIMEOUT)

    @property
    def connections(self) -> int:
        """How many connections stand now."""
        return len(self._links)

    def cut(self, *, reset: bool = True) -> None:
        """End every connection that stands, on both sides; new ones are made.

        Args:
            reset: with RST, and what is on its way is lost; False: with FIN, after it.
        """
        for link in tuple(self._links):
            link.end(reset=reset)

    def truncate(self, after: int, *, toward: Way = "client", reset: bool = True) -> None:
        """End every connection that stands after so many more bytes, wherever in a message that is."""
        for link in self._links:
            link.add(Fault("reset" if reset else "close", link.passed[toward] + after, toward))

    def stall(self, *, fresh: bool = True) -> None:
        """Let nothing pass any more, and tell nobody.

        Args:
            fresh: whether new connections stall too; False: only those that stand now.
        """
        for link in self._links:
            link.stall(None)
        if fresh:
            self._flowing.clear()

    def delay(self, seconds: float) -> None:
        """Hold each piece that is read for so many seconds, both ways, from now on; 0: no more."""
        self._delay = seconds

    def split(self, size: int | None) -> None:
        """Send pieces of at most ``size`` bytes, both ways, from now on; None: as they come."""
        self._size = size

    def refuse(self) -> None:
        """Refuse new connections (``ECONNREFUSED``) until :meth:`accept`; those that stand go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Accept new connections again, on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=_bind(self.host, self.port))

    async def heal(self, *, standing: bool = True) -> None:
        """Be a good network from now on: what was stalled flows again, and the plan is over.

        Args:
            standing: whether that is true for the connections that stand; False: for new ones only, as where
                a firewall has forgotten the others meanwhile.
        """
        self._plan = None
        self._delay, self._size = 0.0, None
        if standing:
            for link in self._links:
                link.heal()
        self._flowing.set()
        await self.accept()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.accepted
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this in a task
        self._tasks.add(task)
        link = _Link(self._plan(number) if self._plan else (), writer)
        self._links.add(link)
        try:
            await self._flowing.wait()
            await link.flow()
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                answers, requests = await self._dial()
            link.join(requests)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(link, "server", reader, requests))
                group.create_task(self._forward(link, "client", answers, writer))
        except* OSError:
            link.end(reset=True)  # one side is gone, or was never there: the other one hears of it
        finally:
            link.end(reset=False)
            self._links.discard(link)
            self._tasks.discard(task)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, Path):
            return await asyncio.open_unix_connection(str(self._upstream))
        return await asyncio.open_connection(*self._upstream)

    async def _forward(
        self, link: _Link, toward: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(_READ):
            if self._delay:
                await asyncio.sleep(self._delay)
            rest = memoryview(data)
            while rest:
                await self._flowing.wait()
                size = await link.pass_on(toward, len(rest) if self._size is None else self._size)
                if size == 0:
                    return
                if writer.is_closing():
                    raise ConnectionResetError  # its other end went away; uvloop would not say so
                piece, rest = rest[:size], rest[size:]
                link.passed[toward] += len(piece)
                self.passed[toward] += len(piece)
                writer.write(piece)
                await writer.drain()
                if rest:
                    # The next piece travels alone only where the other side has a chance to read this one.
                    await asyncio.sleep(0)
        await self._flowing.wait()
        await link.pass_on(toward, 1)
        # Only this direction is over: what the other one still has to say is let through.
        if not writer.is_closing():
            writer.write_eof()


class _Link:
    """One connection: its two sides, and what goes wrong between them."""

    def __init__(self, faults: Sequence[Fault], client: asyncio.StreamWriter) -> None:
        self._faults = list(faults)
        self._sides = [client]
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._over = False
        self.passed: dict[Way, int] = {"client": 0, "server": 0}

    def join(self, server: asyncio.StreamWriter) -> None:
        self._sides.append(server)
        if self._over:
            _end(server, reset=True)

    def add(self, fault: Fault) -> None:
        self._faults.append(fault)

    def heal(self) -> None:
        self._faults.clear()
        self._flowing.set()

    def stall(self, seconds: float | None) -> None:
        self._flowing.clear()
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self._flowing.set)

    def end(self, *, reset: bool) -> None:
        self._over = True
        # Its readers must come to their end too.
        self._flowing.set()
        for side in self._sides:
            _end(side, reset=reset)

    async def flow(self) -> None:
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


def _bind(host: str, port: int) -> socket.socket:
    place = socket.socket()
    try:
        # Both systems then let a second socket have the port of the first, which keeps it.
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        place.bind((host, port))
        place.setblocking(False)
    except BaseException:
        place.close()
        raise
    return place
