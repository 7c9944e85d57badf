"""Several processes that accept on the same sockets: started, replaced where one dies, stopped in order."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import connection
from socket import socket
from typing import Final

from freeloop.server.backoff import Backoff
from freeloop.server.worker import Target, Worker, describe, spawn

logger = logging.getLogger("freeloop.workers")
_MARGIN: Final = 2.0  # seconds that a worker may take beyond its own limit before it is killed
_STOPS: Final = (signal.SIGINT, signal.SIGTERM)
_HEEDED: Final = (*_STOPS, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD)


def supervise(
    target: Target, sockets: list[socket], *, workers: int, shutdown_timeout: float, start_timeout: float
) -> int:
    """Run processes that all accept on ``sockets``, until SIGINT or SIGTERM.

    Both signals are passed on to every worker, and so is each repetition. SIGHUP replaces the workers one
    after the other, each by one that is ready; SIGTTIN adds a worker, SIGTTOU removes one. A worker that ends
    unasked is replaced, for ever, with a growing delay; only while the first workers start does one that ends
    before it is ready end the service, as a start error. A worker is never killed for being silent.
    If this process is killed, the workers stop by themselves.

    Call it in the main thread, and end the process afterwards: all these signals are ignored from then on.

    Args:
        target: Runs in each worker; must be picklable. Installs its own handlers for SIGINT and SIGTERM,
            calls its second argument once it answers, and returns within ``shutdown_timeout`` after a signal.
        sockets: Bound sockets. They are closed here when the shutdown begins: connections are refused then,
            and do not wait in vain, once the last worker listens no more.
        workers: How many processes, at least one.
        shutdown_timeout: Seconds that a worker takes at most to stop; two seconds later it is killed.
        start_timeout: Seconds that a worker takes at most until it is ready; then it is killed.

    Returns:
        The exit code: 0 after an orderly shutdown; 1 where a worker failed at it or had to be killed; at a
        start error that of the worker, or 128 plus the number of the signal that killed it.
    """
    if workers < 1:
        raise ValueError(f"expected at least 1 worker, got {workers}")
    return _Supervisor(target, sockets, workers, shutdown_timeout + _MARGIN, start_timeout).run()


class _Supervisor:
    """All state changes in one loop, which waits for signals, messages and the next deadline."""

    def __init__(
        self, target: Target, sockets: list[socket], wanted: int, stop_timeout: float, start_timeout: float
    ) -> None:
        self._target = target
        self._sockets = sockets
        self._wanted = wanted
        self._stop_timeout = stop_timeout
        self._start_timeout = start_timeout
        self._workers: list[Worker] = []
        # Places without a worker, and when each gets one.
        self._due = [(0.0, Backoff(time.monotonic)) for _ in range(wanted)]
        self._generation = 0
        self._starting = True
        self._stopping = False
        self._code = 0

    def run(self) -> int:
        with _heed_signals() as wakeup:
            try:
                self._fill_places()
                while self._workers or not self._stopping:
                    self._wait(wakeup)
                    self._kill_overdue()
                    self._reap()
                    self._fill_places()
                    self._renew_one()
            finally:
                for worker in self._workers:  # only after an error of our own: Python's exit waits for them
                    worker.process.kill()
        return self._code

    def _wait(self, wakeup: int) -> None:
        moments = [due for due, _ in self._due]
        moments += [worker.deadline for worker in self._workers if worker.deadline is not None]
        timeout = max(0.0, min(moments) - time.monotonic()) if moments else None
        # The end of a worker comes as SIGCHLD: its sentinel would stay open while a grandchild holds it.
        pipes = [worker.pipe for worker in self._workers if not worker.pipe.closed]
        connection.wait([wakeup, *pipes], timeout)
        self._note_ready()
        with contextlib.suppress(BlockingIOError):
            for number in os.read(wakeup, 1024):
                self._heed(signal.Signals(number))

    def _note_ready(self) -> None:
        for worker in self._workers:
            if not worker.read_ready() or worker.stopping:
                continue
            worker.deadline = None
            worker.backoff.recover()
            logger.info("worker %d is ready", worker.pid)
            old, worker.replaces = worker.replaces, None
            if old in self._workers and not old.stopping:
                self._stop(old, signal.SIGTERM)
        if not self._due and all(worker.ready for worker in self._workers):
            self._starting = False

    def _heed(self, number: signal.Signals) -> None:
        if number in _STOPS:
            logger.info("%s: %d workers stop", number.name, len(self._workers))
            self._stop_all(number)
        elif self._stopping:
            return
        elif number is signal.SIGHUP:
            logger.info("SIGHUP: %d workers are replaced", self._wanted)
            self._generation += 1
            self._due = [(0.0, Backoff(time.monotonic)) for _ in self._due]
        elif number is signal.SIGTTIN:
            self._wanted += 1
            logger.info("SIGTTIN: %d workers from now on", self._wanted)
            self._due.append((0.0, Backoff(time.monotonic)))
        elif number is signal.SIGTTOU and self._wanted == 1:
            logger.warning("SIGTTOU: 1 worker is the least")
        elif number is signal.SIGTTOU:
            self._wanted -= 1
            logger.info("SIGTTOU: %d workers from now on", self._wanted)
            self._remove_place()

    def _remove_place(self) -> None:
        if self._due:
            self._due.pop()
            return
        # Not the two that share a place while one replaces the other; beside them there is always another.
        pairs = [each for worker in self._workers if worker.replaces for each in (worker, worker.replaces)]
        alone = [each for each in self._workers if not each.stopping and each not in pairs]
        self._stop(alone[-1], signal.SIGTERM)

    def _stop(self, worker: Worker, number: signal.Signals) -> None:
        if not worker.stopping:
            worker.stopping = True
            worker.deadline = time.monotonic() + self._stop_timeout
        worker.send(number)

    def _stop_all(self, number: signal.Signals) -> None:
        again, self._stopping = self._stopping, True
        self._due.clear()
        for sock in self._sockets:
            sock.close()
        for worker in self._workers:
            # One that stops already would take the first signal to all for a second one to itself.
            if again or not worker.stopping:
                self._stop(worker, number)

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.deadline is None or worker.deadline > now:
                continue
            worker.deadline = None
            worker.overdue = True
            worker.process.kill()
            if worker.stopping:
                logger.error("worker %d did not end within %g s: killed", worker.pid, self._stop_timeout)

    def _reap(self) -> None:
        self._note_ready()  # what they said before they ended
        for worker in list(self._workers):
            code = worker.process.exitcode
            if code is not None:
                self._workers.remove(worker)
                worker.close()
                if worker.stopping:
                    self._check_end(worker, code)
                else:
                    self._replace(worker, code)

    def _check_end(self, worker: Worker, code: int) -> None:
        # One that never served has nothing to lose: how its start was broken off tells nobody anything.
        unharmed = not worker.ready and not worker.overdue
        if unharmed or code in {0, *(-number for number in _STOPS)}:
            logger.info("worker %d has stopped", worker.pid)
            return
        if not worker.overdue:
            logger.error("worker %d, asked to stop, %s", worker.pid, describe(code))
        if self._stopping:
            self._code = self._code or 1

    def _replace(self, worker: Worker, code: int) -> None:
        how = describe(code)
        if worker.overdue:
            how = f"was not ready within {self._start_timeout:g} s and was killed"
        elif not worker.ready:
            how += " before it was ready"
        if self._starting and not worker.ready:
            logger.error("worker %d %s: the service cannot start", worker.pid, how)
            self._code = 1 if worker.overdue or code == 0 else code if code > 0 else 128 - code
            self._stop_all(signal.SIGTERM)
        elif worker.replaces in self._workers:
            self._give_up_renewal(f"new worker {worker.pid} {how}")
        elif len(self._due) + sum(not each.stopping for each in self._workers) >= self._wanted:
            logger.error("worker %d %s; another one starts already", worker.pid, how)
        elif worker.ready and code == 0:
            logger.info("worker %d has ended by itself; another one starts", worker.pid)
            self._due.append((0.0, Backoff(time.monotonic)))
        else:
            self._retry(worker.backoff, f"worker {worker.pid} {how}")

    def _retry(self, backoff: Backoff, failure: str) -> None:
        delay = backoff.fail()
        logger.error("%s; another one starts %s", failure, f"in {delay:g} s" if delay else "now")
        self._due.append((time.monotonic() + delay, backoff))

    def _give_up_renewal(self, failure: str) -> None:
        logger.error("%s: the old workers stay, and the restart ends", failure)
        for worker in self._workers:
            worker.generation = self._generation

    def _fill_places(self) -> None:
        now = time.monotonic()
        due = [backoff for moment, backoff in self._due if moment <= now]
        self._due = [place for place in self._due if place[0] > now]
        for backoff in due:
            try:
                self._start(backoff)
            except OSError as error:
                if self._starting:
                    raise
                self._retry(backoff, f"a worker could not be started: {error}")

    def _renew_one(self) -> None:
        """Start the replacement of one outdated worker, where none is under way."""
        if self._starting or self._stopping or any(each.replaces or each.stopping for each in self._workers):
            return
        outdated = (each for each in self._workers if each.ready and each.generation < self._generation)
        if (old := next(outdated, None)) is not None:
            try:
                self._start(Backoff(time.monotonic), replaces=old)
            except OSError as error:
                self._give_up_renewal(f"a new worker could not be started: {error}")

    def _start(self, backoff: Backoff, replaces: Worker | None = None) -> None:
        process, pid, pipe = spawn(self._target, self._sockets, self._stop_timeout)
        logger.info("worker %d starts", pid)
        deadline = time.monotonic() + self._start_timeout
        self._workers.append(Worker(process, pid, pipe, backoff, self._generation, replaces, deadline))


@contextlib.contextmanager
def _heed_signals() -> Iterator[int]:
    """Give a descriptor that holds one byte for each signal: none is lost, and none interrupts anything."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _HEEDED:
        signal.signal(number, lambda *_: None)
    try:
        yield reader
    finally:
        for number in _HEEDED:
            # One Ctrl-C more would end the process, which only has to return its exit code, with a traceback.
            signal.signal(number, signal.SIG_DFL if number is signal.SIGCHLD else signal.SIG_IGN)
        signal.set_wakeup_fd(wakeup)
        os.close(reader)
        os.close(writer)
