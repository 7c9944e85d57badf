"""A network that fails on purpose: it stands between a client and a real server, and follows a plan."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from freeloop.database.address import Address
from freeloop.testing.faults import Fault, Plan, Way
from freeloop.testing.link import Link

Upstream: TypeAlias = tuple[str, int] | Path

# Seconds, far more than loopback takes: a test that goes wrong fails here, and not at its own end.
_CONNECT_TIMEOUT: Final = 5.0
_CLOSE_TIMEOUT: Final = 5.0
_READ: Final = 2**16
_PORT: Final = 5432  # PostgreSQL's, where an address names none


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
        self._links: set[Link] = set()
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
        self._place = bind_loopback(self.host, 0)
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
            self._server = await asyncio.start_server(self._serve, sock=bind_loopback(self.host, self.port))

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
        link = Link(self._plan(number) if self._plan else (), writer)
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
        self, link: Link, toward: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
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


def bind_loopback(host: str, port: int) -> socket.socket:
    """Return a socket that has the port (0: a free one) and does not listen: connecting is refused."""
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
