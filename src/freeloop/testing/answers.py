"""What an upstream can do wrong, each a function that plays it and says whether the connection goes on."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

_DRIP_INTERVAL: Final = 0.005
_NO_LINGER: Final = b"\1\0\0\0\0\0\0\0"  # with a linger time of 0 the close sends RST
_BOMB: Final = 64  # MiB

BODY: Final = b'{"answer": "as asked for"}'
STRAY: Final = b'{"answer": "for nobody"}'


@dataclass(slots=True)
class Exchange:
    """One request, and the connection that it came by.

    Attributes:
        method: such as ``GET``.
        target: the path with its query.
        content: the body that came; empty for none.
        url: of the upstream, without a path.
        dice: for what is left to chance; one seed always throws the same.
        head: the request line and the headers, as they came.
    """

    method: str
    target: str
    content: bytes
    url: str
    dice: random.Random = field(repr=False)
    head: bytes = field(repr=False)
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)

    async def send(self, data: bytes) -> None:
        """Send all of it at once."""
        if self.writer.is_closing():
            raise ConnectionResetError  # the client went away; uvloop would say so in another way
        self.writer.write(data)
        await self.writer.drain()

    async def send_pieces(self, data: bytes) -> None:
        """Send it in up to three pieces, cut anywhere."""
        cuts = sorted(self.dice.randrange(len(data) + 1) for _ in range(2))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start < end:
                await self.send(data[start:end])
                # The other side gets a chance to read this one by itself.
                await asyncio.sleep(0)

    async def wait_for_close(self) -> None:
        """Wait until the client has gone."""
        while await self.reader.read(2**16):
            pass


Answer: TypeAlias = Callable[[Exchange], Awaitable[bool]]
"""Plays one request's part; true where the connection goes on, false where it is closed."""


def render(
    body: bytes = BODY, *, status: str = "200 OK", headers: str = "", length: int | None = None
) -> bytes:
    """Return a whole answer; ``length`` is what it claims, where that is not the truth."""
    claimed = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {claimed}\r\n{headers}\r\n".encode() + body


def say(data: bytes) -> Answer:
    """Return an answer of these bytes, in pieces, after which the connection goes on."""

    async def play(exchange: Exchange) -> bool:
        head, end, _ = data.partition(b"\r\n\r\n")
        await exchange.send_pieces(head + end if exchange.method == "HEAD" else data)
        return True

    return play


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST, and lose what is on its way."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


async def _hang(exchange: Exchange) -> bool:
    await exchange.wait_for_close()
    return False


async def _close(_: Exchange) -> bool:
    return False


async def _reset(exchange: Exchange) -> bool:
    reset(exchange.writer)
    return False


def _break_off(data: bytes, *, after: int, by: Answer = _close) -> Answer:
    async def play(exchange: Exchange) -> bool:
        await exchange.send_pieces(data[: exchange.dice.randrange(after, len(data))])
        return await by(exchange)

    return play


def _drip(beginning: bytes) -> Answer:
    async def play(exchange: Exchange) -> bool:
        await exchange.send(beginning)
        while True:
            await exchange.send(b"x")
            await asyncio.sleep(_DRIP_INTERVAL)

    return play


async def _babble(exchange: Exchange) -> bool:
    # Never by chance the first letter of HTTP.
    await exchange.send_pieces(
        b"\0" + exchange.dice.randbytes(exchange.dice.randrange(1, 2000)) + b"\r\n\r\n"
    )
    return False


async def _run_on(exchange: Exchange) -> bool:
    await exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await exchange.send(b"x" * 4000)


async def _answer_twice(exchange: Exchange) -> bool:
    """One packet, in which the body ends and an answer to nothing stands."""
    await exchange.send(render() + render(STRAY))
    return True


async def _answer_twice_large(exchange: Exchange) -> bool:
    """The same, where the caller has begun to read before the end comes."""
    data = render(b"[" + b" " * 100_000 + b"1]") + render(STRAY)
    cut = exchange.dice.randrange(60, 100_000)
    await exchange.send(data[:cut])
    await asyncio.sleep(0)
    await exchange.send(data[cut:])
    return True


async def _answer_and_begin(exchange: Exchange) -> bool:
    """A packet that ends in the midst of an answer to nothing; the rest of it comes with the next answer."""
    stray = render(STRAY)
    await exchange.send(render() + stray[: exchange.dice.randrange(1, len(stray))])
    return True


async def _redirect_on(exchange: Exchange) -> bool:
    # /redirect-on/3 leads to /redirect-on/2; the one with 0 is the end.
    path, _, left = exchange.target.rpartition("/")
    if not left.isdigit() or left == "0":
        return await say(render())(exchange)
    await exchange.send(render(b"", status="302 Found", headers=f"Location: {path}/{int(left) - 1}\r\n"))
    return True


async def _redirect_in_circles(exchange: Exchange) -> bool:
    there = {"/redirect-in-circles": "/redirect-in-circles?2"}.get(exchange.target, "/redirect-in-circles")
    await exchange.send(render(b"", status="307 Temporary Redirect", headers=f"Location: {there}\r\n"))
    return True


async def _redirect_to_loopback(exchange: Exchange) -> bool:
    await exchange.send(render(b"", status="302 Found", headers=f"Location: {exchange.url}/secret\r\n"))
    return True


async def _drop_bomb(exchange: Exchange) -> bool:
    # Members one after another are a gzip file too, and soon packed.
    packed = gzip.compress(b"\0" * 2**20) * _BOMB
    await exchange.send(render(packed, headers="Content-Encoding: gzip\r\n"))
    return True


_CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_HEAD: Final = len(render()) - len(BODY)

ANSWERS: Final[Mapping[str, Answer]] = {
    "ok": say(render()),
    "hang": _hang,
    "hang-midway": _break_off(render(), after=1, by=_hang),
    "drip": _drip(render(b"", length=10**6)),
    "drip-head": _drip(b"HTTP/1.1 200 OK\r\nX-Long: "),
    "close": _close,
    "reset": _reset,
    "truncate-head": _break_off(render()[:_HEAD], after=1),
    "truncate": _break_off(render(), after=_HEAD),
    "truncate-chunk": _break_off(_CHUNKED + b"5\r\nabcde\r\n5\r\nabcde\r\n", after=len(_CHUNKED)),
    "reset-midway": _break_off(render(), after=_HEAD, by=_reset),
    "garbage": _babble,
    "garbage-chunk": say(_CHUNKED + b"ZZ\r\nab\r\n0\r\n\r\n"),
    "endless-header": say(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n"),
    "endless": _run_on,
    "extra": _answer_twice,
    "extra-large": _answer_twice_large,
    "extra-begun": _answer_and_begin,
    "redirect-on": _redirect_on,
    "redirect-in-circles": _redirect_in_circles,
    "redirect-to-loopback": _redirect_to_loopback,
    "bomb": _drop_bomb,
    "not-gzip": say(render(b"abcde", headers="Content-Encoding: gzip\r\n")),
    "busy": say(render(b"", status="429 Too Many Requests", headers="Retry-After: 7\r\n")),
}
"""Every way by its name, which is also the path that asks for it."""
