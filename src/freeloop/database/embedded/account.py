"""Which user of the system PostgreSQL runs as, and what that user can reach.

PostgreSQL refuses to run as root. Where we are root, an unprivileged user that exists is taken; none is made.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from freeloop.errors import EmbeddedServerError

_CANDIDATES: Final = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the system.

    Args:
        name: name, or the number where the user has none (as in some containers).
        uid: number of the user.
        gid: number of the user's group. Further groups are not used.
    """

    name: str
    uid: int
    gid: int


def choose_account(owners: list[Path]) -> Account:
    """Choose whom PostgreSQL runs as: ourselves, or where we are root, the owner of what is already there.

    Args:
        owners: folders whose owner decides, the first that exists and is not root's.

    Raises:
        EmbeddedServerError: We are root and there is no user to take.
    """
    if os.geteuid() != 0:
        return Account(_name(os.geteuid()), os.geteuid(), os.getegid())
    for folder in owners:
        if folder.is_dir() and (owner := folder.stat()).st_uid != 0:
            return Account(_name(owner.st_uid), owner.st_uid, owner.st_gid)
    import pwd  # noqa: PLC0415 - Windows has none, and must come as far as the message in locks.py

    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedServerError(
        "PostgreSQL refuses to run as root, and this system has no user named 'postgres' or 'nobody' to "
        "run it as. Start as another user, or set FREELOOP_DATABASE_URL."
    )


def describe_owner(path: Path) -> str:
    """Name the owner of a file for a message."""
    return repr(_name(path.stat().st_uid))


def find_barrier(path: Path, account: Account) -> Path | None:
    """Find the first folder on the way to ``path`` (itself included) that the account cannot enter.

    What does not exist is no barrier. Only the mode is asked, since it is what can be named and changed.
    """
    for folder in (*reversed(path.parents), path):
        try:
            status = folder.stat()
        except FileNotFoundError:
            return None
        if not _may_enter(status, account):
            return folder
    return None


def describe_barrier(folder: Path) -> str:
    """Name a folder with its mode and owner for a message."""
    return f"{folder} (mode {stat.S_IMODE(folder.stat().st_mode):04o}, owner {describe_owner(folder)})"


def _may_enter(status: os.stat_result, account: Account) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _name(uid: int) -> str:
    import pwd  # noqa: PLC0415 - as above

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
