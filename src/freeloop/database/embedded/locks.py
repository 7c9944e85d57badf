"""Kernel locks on files, and the line in which the keeper says how far it is.

The locks are ``flock`` locks: they belong to the open file, not to the process, and the kernel gives them
back when the last descriptor of that open file is closed, however the process ended.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from freeloop.errors import EmbeddedServerError

try:
    import fcntl
except ImportError as error:  # Windows
    raise EmbeddedServerError(
        "the embedded PostgreSQL needs the file locks of Linux or macOS, which this system does not have. "
        "Set FREELOOP_DATABASE_URL to the address of a PostgreSQL server."
    ) from error

STATE_SIZE: Final = 64


class FileLock:
    """A lock that is held until :meth:`close`.

    The descriptor is not inheritable, so a program that this process starts does not hold the lock. A
    child made by ``os.fork()`` alone is different: it shares the open file, and with it the lock, until it
    ends or executes a program. That errs on the safe side: the server lives longer, never shorter. For the
    same reason the lock is given back by closing and not by ``LOCK_UN``, which would take it from both.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def close(self) -> None:
        """Give the lock back. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_file(path: Path, flags: int = os.O_RDWR) -> int:
    """Open a file of the server's folder, made where it is missing, for the folder's owner.

    Root may use the folder of another user, who must be able to use it afterwards. Links are not followed,
    since that user could have put one there.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileNotFoundError):
        return os.open(path, flags)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process was faster
        return os.open(path, flags)
    owner = path.parent.stat()
    if owner.st_uid != os.geteuid():
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def try_shared(path: Path) -> FileLock | None:
    """Take a shared lock, or None where another holds the exclusive one."""
    return _try(path, fcntl.LOCK_SH)


def try_exclusive(path: Path) -> FileLock | None:
    """Take the exclusive lock, or None where another holds any."""
    return _try(path, fcntl.LOCK_EX)


def _try(path: Path, kind: int) -> FileLock | None:
    descriptor = open_file(path)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor)


@dataclass(frozen=True, slots=True)
class KeeperState:
    """What the keeper last wrote into its lock file; worth something only while it holds the lock.

    Args:
        phase: ``starting``, ``ready`` or ``stopping``; empty before the first keeper.
        keeper: process id of the keeper, 0 where unknown.
        postmaster: process id of PostgreSQL's first process, 0 where there is none.
    """

    phase: str = ""
    keeper: int = 0
    postmaster: int = 0


def read_state(path: Path) -> KeeperState:
    """Read the keeper's line; an empty state where there is none."""
    try:
        words = path.read_bytes()[:STATE_SIZE].decode("ascii", "replace").split()
        return KeeperState(words[0], int(words[1]), int(words[2]))
    except (FileNotFoundError, IndexError, ValueError):
        return KeeperState()
