"""The watchdog's thread: it looks at the loop from outside, and most of the time sees that all is well.

Each heartbeat puts its alarm off until the next one would be late. Where that is, it wakes up, and looks come
in short order until the next heartbeat; each keeps a sample of what the loop runs. While all is well it
sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from types import FrameType
from typing import Final, Protocol

from freeloop.watch.alarm import Alarm
from freeloop.watch.backstop import Backstop, Dump
from freeloop.watch.blame import Blamed, blame_thread
from freeloop.watch.callee import name_calls
from freeloop.watch.clocks import Reading, RunQueue, count_sleeps, read_clocks
from freeloop.watch.heartbeat import Beat, Heart
from freeloop.watch.place import find_place
from freeloop.watch.sample import Sample
from freeloop.watch.stack import Stack, read_threads
from freeloop.watch.verdict import Block, Evidence, Starved, judge
from freeloop.watch.view import View, take_view

logger = logging.getLogger("freeloop.watch")

_CLOSE: Final = 0.002  # seconds between the first samples of a block; then more and more, up to a tick
_MANY: Final = 50  # samples in short order
_MOST: Final = 1_000  # samples of one block; those of its beginning are kept
_TURNS: Final = 3  # times the interval in which Python switches threads
_OTHER_SLEEPS: Final = 4  # than for the GIL: until it was to look, and where the process was stopped
_PATIENCE: Final = 0.05  # seconds that a thread with little to do waits for a CPU in one piece, at most
_TRIES: Final = 3  # to see all at one moment
# Seconds that a thread computes, and others that want the GIL do not get it: as a rule, and where they just
# did not. In less than the threshold what held it on may give way to something else, which then looks guilty.
_SURELY_HELD: Final = 0.13
_HELD_ON: Final = 0.08
_FAILURES: Final = 3  # that are logged
_PUNCTUAL: Final = 0.02  # seconds; the clock of files advances in steps of up to 10 ms


class Listener(Protocol):
    """Told what was seen, in the watchdog's thread."""

    def note_block(self, block: Block, thread: Stack, working_for: Blamed | None, *, goes_on: bool) -> None:
        """Note a block: while it goes on, each time it has lasted twice as long, and at its end.

        Args:
            block: The block.
            thread: Where another thread held the GIL: what it ran.
            working_for: And whom it worked for.
            goes_on: Whether it is not over yet.
        """

    def note_stall(self, seconds: float) -> None:
        """Note that the host did not let the process run."""


class Probe:
    """Watches the loop that runs in this thread, from a thread of its own, until it is stopped.

    Args:
        loop: The loop.
        threshold: From how many seconds on it counts as blocked.
        backstop: Whether to use the C timer for blocks that hold the GIL.
        listener: Told of blocks.

    Attributes:
        heart: The heartbeat on the loop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, threshold: float, backstop: bool, listener: Listener
    ) -> None:
        self._loop = loop
        self._threshold = threshold
        self._tick = threshold / 5
        self._listener = listener
        self._ident = threading.get_ident()
        self._samples: list[Sample] = []
        self._starved: list[Starved] = []
        self._dump: Dump | None = None
        self._caught: View | None = None  # when the C timer went off
        self._threads: dict[int, Stack] = {}  # once it was late
        self._met: dict[int, Stack] = {}  # by the loop, where it came first
        self._running: object = None
        self._steps = 0
        self._told: tuple[Beat, Block] | None = None
        self._told_at = 0.0  # seconds that it had lasted
        self._settled = 0.0
        self._slept = 0  # how often, when this look was planned
        self._gil_wait = 0.0  # seconds that it surely waited for the GIL since then
        self._settling = False
        self._sampling = False  # whether looks come in short order
        self._failures = 0
        self._alarm = Alarm()
        self._backstop = Backstop(self._catch) if backstop else None
        self._thread = threading.Thread(target=self._run, name="freeloop-watch", daemon=True)
        self._thread.start()  # it waits: the alarm is set below, once all that a look needs is there
        self._loop_queue = RunQueue(threading.get_native_id())
        self._queue = RunQueue(self._thread.native_id or 0)
        self.heart = Heart(loop, limit=threshold, tick=self._tick, read=self._read, on_beat=self._hear)
        # Read by the last look, and by the last heartbeat that has put the alarm off.
        self._before = self._heard = self.heart.last.clocks
        self._alarm.set(self._plan(self._before.at, self.heart.last, overdue=False))

    def stop(self) -> None:
        """Look no longer; to be called once, in the loop's thread."""
        self.heart.stop()
        self._alarm.wake()
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._alarm.close()
        self._queue.close()
        self._loop_queue.close()
        if self._backstop is not None:
            self._backstop.close()

    async def catch_up(self, seconds: float) -> None:
        """Wait until what has happened on the loop so far is judged; at most so many seconds."""
        self.heart.hurry()
        pause = self._tick / 4
        await asyncio.sleep(0)
        for _ in range(int(seconds / pause)):
            if not self.heart.gaps and not self._settling:
                break
            await asyncio.sleep(pause)

    def _run(self) -> None:
        while self._alarm.wait():
            self._try_to_look()
            if time.monotonic() < self._alarm.at:
                self._slept = count_sleeps()  # what the look itself has waited for is over

    def _read(self) -> Reading:
        return read_clocks(self._queue, self._loop_queue)

    def _hear(self, beat: Beat, gap: bool) -> None:
        """Hear a heartbeat, in the loop's thread, before it is the last one."""
        if gap:
            self._meet()
        elif not self._sampling and self._alarm.put_off(self._plan(beat.at, beat, overdue=False)):
            self._heard = beat.clocks
            if self._backstop is not None:
                self._backstop.arm(self._find_patience(hindered=False))

    def _try_to_look(self) -> None:
        """Look, and go on where that fails: what was looked at belongs to others, and may be odd."""
        try:
            self._look()
        except Exception:
            self._failures += 1
            self._alarm.set(time.monotonic() + self._threshold)
            if self._failures <= _FAILURES:
                logger.exception("the watchdog could not look at the event loop")

    def _look(self) -> None:
        view, clocks, gaps = self._see()
        now, planned, last = clocks.at, self._alarm.at, self.heart.last
        late, overdue = self._is_late(now), self._is_overdue(now)
        caught, self._caught = self._caught, None
        met, self._met = self._met, {}
        self._before = max(self._before, self._heard, key=lambda each: each.at)
        # Nor is it anybody's fault to have waited for a CPU.
        waited = clocks.waited - self._before.waited
        hindered = late and now - planned - waited > _TURNS * sys.getswitchinterval()
        # While it waits for the GIL it wakes up in each interval in which Python switches threads, unless the
        # process is stopped.
        sleeps = max(0, clocks.sleeps - self._slept - _OTHER_SLEEPS)
        self._gil_wait = sleeps * sys.getswitchinterval()
        self._sampling = overdue
        self._alarm.set(self._plan(now, last, overdue=overdue))
        self._slept = clocks.sleeps
        self._arm(hindered=hindered, caught=caught is not None)
        first = (caught or view) if hindered else None
        if hindered:
            self._note_starved(planned, now, last, clocks)
        if first is not None:
            self._threads = met or first.threads
        if view is not None:
            since = max(self._before.at, min(last.at, now))
            self._sample(view, first, clocks, since)
        self._settling = True
        for _ in range(gaps):  # not those that have come since the clocks were read
            self._settle(*self.heart.gaps.popleft(), clocks)
        self._settling = False
        if self.heart.last is last and self._settled <= last.at:  # the next heartbeat did not come meanwhile
            if overdue:
                self._warn(last, clocks)
            else:
                self._calm_down()
        self._before = clocks

    def _see(self) -> tuple[View | None, Reading, int]:
        """Return what the loop runs, the clocks, and how many gaps there were between heartbeats, at a time.

        On a crowded machine the GIL may get lost in between, and whoever takes it may hold it.
        """
        for _ in range(_TRIES):
            began, gaps = time.monotonic(), len(self.heart.gaps)
            late = self._is_late(began)
            view = self._view(late=late) if late or self._is_overdue(began) else None
            clocks = self._read()
            if clocks.at - began < sys.getswitchinterval():
                break
        return view, clocks, gaps

    def _is_late(self, now: float) -> bool:
        # Python switches threads each few ms: to be late by that much is no more than taking turns.
        return now - self._alarm.at > _TURNS * sys.getswitchinterval()

    def _is_overdue(self, now: float) -> bool:
        return now > self.heart.last.due + self.heart.patience

    def _catch(self, _signal: int, _frame: FrameType | None) -> None:
        """See what the loop runs, in its own thread, after the C timer went off."""
        # Whatever is odd about it must not come out of the app's code, and is seen in the next look again.
        with contextlib.suppress(Exception):
            self._caught = self._view(late=True)

    def _meet(self) -> None:
        """See what all threads run, in the loop's thread, where that got the GIL before the watchdog's did.

        Whoever held it goes on as soon as the loop waits again.
        """
        with contextlib.suppress(Exception):  # as above
            if self._is_late(time.monotonic()):
                self._met = read_threads(sys._current_frames())

    def _view(self, *, late: bool) -> View | None:
        """Return what the loop runs now."""
        boundary = self.heart.boundary
        if boundary is None:
            return None
        # Where nobody could look, whoever has held the GIL until now still stands where it did.
        handler = Probe._catch.__code__
        return take_view(self._loop, boundary, self._ident, handler=handler, threads=late)

    def _number(self, running: object) -> int:
        """Return the number of the step that runs."""
        if running is not self._running:
            # Held on to until the next look: its address must not be given to another one meanwhile.
            self._running = running
            self._steps += 1
        return self._steps

    def _plan(self, now: float, last: Beat, *, overdue: bool) -> float:
        """Return when to look next, in seconds of :func:`time.monotonic`."""
        if overdue:
            return now + min(self._tick, _CLOSE * max(1.0, len(self._samples) / _MANY))
        return max(now + self._tick / 8, last.due + self._tick / 4, last.at + self._threshold / 2)

    def _arm(self, *, hindered: bool, caught: bool) -> None:
        """Set the C timer anew: it goes off where the next look does not come."""
        if self._backstop is None:
            return
        self._backstop.arm(self._find_patience(hindered=hindered))
        dump = self._backstop.take() if hindered or caught else None
        self._dump = dump if hindered else None  # else it is of a time that others could look at

    def _find_patience(self, *, hindered: bool) -> float:
        """Return for how many seconds the loop may compute until the C timer goes off."""
        ticks, least = (4, _HELD_ON) if hindered else (6.5, _SURELY_HELD)  # the threshold is five
        return max(ticks * self._tick, least)

    def _note_starved(self, planned: float, now: float, last: Beat, clocks: Reading) -> None:
        waited = clocks.waited - self._before.waited
        # What was used until this look was due is not what was used since, but no more than all that time.
        before = max(0.0, planned - self._before.at)
        used = clocks.process - self._before.process - before
        advanced = max(0.0, used) + clocks.delayed - self._before.delayed
        # Nor is what a thread uses while this one waits for its turn, or for a CPU to take it.
        turn = _TURNS * sys.getswitchinterval() + min(_PATIENCE, waited)
        surely = {
            ident: cpu - self._before.threads.get(ident, 0.0) - before - turn
            for ident, cpu in clocks.threads.items()
        }
        since_beat = clocks.threads.get(self._ident, 0.0) - last.cpu - max(0.0, planned - last.at) - turn
        loop = max(0.0, surely.pop(self._ident, 0.0), since_beat, self._tell_held(clocks))
        # A process that was stopped has not waited for the GIL either.
        ran = self._gil_wait >= 0.5 * (now - planned - waited)
        self._starved.append(Starved(planned, now, advanced, ran, loop, surely))

    def _tell_held(self, clocks: Reading) -> float:
        """Return for how many seconds the loop's thread held the GIL, as the watchdog waited for it."""
        used = {ident: cpu - self._before.threads.get(ident, 0.0) for ident, cpu in clocks.threads.items()}
        own = used.pop(self._ident, 0.0)
        # Another one may have held it, or this one without a CPU.
        lost = sum(used.values()) + clocks.delayed - self._before.delayed
        return min(own, self._gil_wait - lost) - _TURNS * sys.getswitchinterval()

    def _sample(self, view: View, first: View | None, clocks: Reading, since: float) -> None:
        """Keep what the loop runs now, and what it ran while nobody could look.

        Args:
            view: What it runs now.
            first: Where nobody could look: what it ran as soon as somebody could.
            clocks: Now.
            since: When it was looked at last.
        """
        if len(self._samples) >= _MOST:
            return
        now, cpu = clocks.at, clocks.threads.get(self._ident, 0.0)
        if first is not None and (held := self._find_held()):
            # A C function has just come to its end. Whose it was can be told only where the loop still ran
            # the function that had called it.
            place = find_place(held)
            pairs = zip(first.stack, first.frames, strict=False)
            frame = next((each for line, each in pairs if place is not None and line.is_of(place)), None)
            at = now if self._dump is None else min(now, self._dump.at)
            calls = name_calls(held[0], frame if held[0] == place else None)
            whose = first.blamed if frame is not None else None
            step = self._number(first.running)
            if frame is None:
                step = -step  # another one, where it is not surely the same
            self._samples.append(Sample(at, now - since, cpu, held, place, step, whose, calls))
            since = now
        elif first is not None and first is not view:
            # The signal has come, though what it wrote was read before: while this thread read it.
            self._keep(first, now, now - since, cpu)
            since = now
        self._keep(view, now, now - since, cpu)

    def _keep(self, view: View, at: float, seconds: float, cpu: float) -> None:
        step = self._number(view.running)
        if view.frames:
            calls = name_calls(view.stack[0], view.frames[0], view.lasti)
            place = find_place(view.stack)
            self._samples.append(Sample(at, seconds, cpu, view.stack, place, step, view.blamed, calls))

    def _find_held(self) -> Stack:
        """Return what the loop ran when the C timer went off; empty: nothing, or it did not go off."""
        stack = () if self._dump is None else self._dump.stack
        boundary = self.heart.boundary
        for depth, line in enumerate(stack):
            if boundary and (line.file, line.function) == (boundary.co_filename, boundary.co_name):
                return stack[:depth]
        return ()

    def _settle(self, before: Beat, after: Beat, clocks: Reading) -> None:
        """Judge what was between two heartbeats."""
        early = before.at - _PUNCTUAL
        samples = [sample for sample in self._samples if early < sample.at <= after.at]
        evidence = self._gather(before, after, samples, clocks)
        if evidence.withheld >= self._threshold:
            self._listener.note_stall(evidence.withheld)
        self._settled = after.at
        block = judge(evidence, self._threshold)
        if block is None and self._told is not None and self._told[0] is before:
            block = self._told[1]  # it was told of, and is over
        if block is not None:
            self._report(block, goes_on=False)
        self._told = None
        self._samples = [sample for sample in self._samples if sample.at > after.at]

    def _warn(self, last: Beat, clocks: Reading) -> None:
        """Tell of a block that goes on, and again each time it has lasted twice as long."""
        lasted = clocks.at - last.at
        if lasted < (self._threshold + 2 * self._tick if self._told is None else 2 * self._told_at):
            return
        now = last._replace(cpu=clocks.threads.get(self._ident, last.cpu), clocks=clocks)
        evidence = self._gather(last, now, self._samples, clocks)
        if (block := judge(evidence, self._threshold)) is not None:
            self._told, self._told_at = (last, block), lasted
            self._report(block, goes_on=True)

    def _gather(self, start: Beat, end: Beat, samples: list[Sample], clocks: Reading) -> Evidence:
        """Return what was seen between two heartbeats, of which the second may be yet to come."""
        return Evidence(
            start.at,
            end.at,
            start.due - start.at,
            end.cpu - start.cpu,
            end.clocks.delayed - start.clocks.delayed,
            clocks.waited - start.clocks.waited,
            samples,
            self._starved,
        )

    def _report(self, block: Block, *, goes_on: bool) -> None:
        stack: Stack = ()
        blamed = None
        if block.thread is not None:
            stack = self._threads.get(block.thread, ())
            blamed = blame_thread(block.thread)
        self._listener.note_block(block, stack, blamed, goes_on=goes_on)

    def _calm_down(self) -> None:
        self._running = self._dump = None
        self._samples.clear()
        self._starved.clear()
        self._threads.clear()
