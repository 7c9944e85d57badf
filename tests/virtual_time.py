"""A loop whose time jumps to the next timer, so that hours pass in seconds, and an upstream that lives in it.

What runs in it is the real code on the real asyncio; only the clock and the network are not.
"""

import asyncio
import selectors
from collections import deque
from dataclasses import dataclass, field

from freeloop.errors import UpstreamTimeout, UpstreamUnreachable
from freeloop.outbound import OutboundRequest, Response


class _Jump(selectors.SelectSelector):
    """Passes the time that the loop would wait, instead of waiting."""

    now = 1000.0

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("nothing is left that could wake the loop: someone waits without a bound")
        self.now += max(timeout, 0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self):
        return self._jump.now


class LateLoop(VirtualLoop):
    """Each of its timers is 5 ms late."""

    def call_later(self, delay, callback, *args, context=None):
        return super().call_later(delay + 0.005, callback, *args, context=context)


def simulate(main, loop=VirtualLoop):
    """Run an async function in virtual time; return its result."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main())


def be_late(seconds):
    """Pass so much time in the middle of a turn, as a loop that something blocks."""
    asyncio.get_running_loop()._jump.now += seconds


def clock():
    return asyncio.get_running_loop().time()


def call(method="GET", *, timeout=10.0, source="prices", url="http://prices.example/1", **changes):
    return OutboundRequest(method=method, url=url, timeout=timeout, max_body=1000, source=source, **changes)


@dataclass
class Upstream:
    """Answers after ``seconds``, with what ``answer`` holds: a status, a status with headers, or an error."""

    seconds: float = 0.0
    answer: object = 200
    script: deque = field(default_factory=deque)  # goes before seconds and answer, one pair a call
    calls: list = field(default_factory=list)
    running: int = 0
    most: int = 0
    cancelled: int = 0
    closed: bool = False

    async def send(self, request):
        seconds, answer = self.script.popleft() if self.script else (self.seconds, self.answer)
        if callable(seconds):
            seconds = seconds()
        started = clock()
        self.calls.append((started, request))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(min(seconds, request.timeout))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if seconds >= request.timeout:
            raise UpstreamTimeout("too slow", source=request.source, seconds=request.timeout)
        if isinstance(answer, Exception):
            raise answer
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        return Response(
            status_code=status,
            headers=headers,
            content=b"",
            url=request.url,
            request=request,
            seconds=clock() - started,
        )

    async def close(self):
        self.closed = True

    @property
    def times(self):
        return [when for when, _ in self.calls]


def refused():
    return UpstreamUnreachable("refused", sent=False)


def broken():
    return UpstreamUnreachable("broke before it answered")


async def arrive(layer, rate, seconds, request=None):
    """Offer so many calls a second, evenly; return how each ended: a status or an error."""
    ends = []

    async def one():
        try:
            ends.append((await layer.send(request or call())).status_code)
        except Exception as error:  # noqa: BLE001 - the outcome is what is looked at
            ends.append(error)

    async with asyncio.TaskGroup() as group:
        for _ in range(int(rate * seconds)):
            group.create_task(one())
            await asyncio.sleep(1 / rate)
    return ends
