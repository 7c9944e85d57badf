"""The folder of the sockets: one for each user, closed to all others."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

LONGEST: Final = 100  # bytes of a socket's path: the kernels take 104 to 108


def prepare_folder(folder: Path) -> None:
    """Make the folder, for its owner only. Blocks.

    Raises:
        OSError: It cannot be made, or is somebody else's or open to others: whoever can put a socket there
            could answer in our place.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(folder, os.geteuid())
    if folder.lstat().st_mode & 0o077:
        folder.chmod(0o700)


def check_owner(folder: Path, *owners: int) -> None:
    """Check that the folder is one, and belongs to one of these users. Blocks.

    Raises:
        OSError: It is not, or does not.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"expected {folder} to be a folder, and no link to one")
    if status.st_uid not in owners:
        expected = " or ".join(map(str, owners))
        raise PermissionError(f"expected {folder} to belong to user {expected}, not to {status.st_uid}")


def path_of(folder: Path, pid: int, number: int = 0) -> Path:
    """Return the path of a process's socket.

    Args:
        folder: The folder.
        pid: The process.
        number: 0 for its first app, then 1 and so on.

    Raises:
        OSError: It is too long for the kernel.
    """
    path = folder / (f"{pid}.sock" if not number else f"{pid}-{number}.sock")
    if len(os.fsencode(path)) > LONGEST:
        raise OSError(f"{path} is longer than the {LONGEST} bytes that a socket's path may have")
    return path


def list_sockets(folder: Path) -> list[Path]:
    """Return the sockets in the folder, of live processes and of dead ones. Blocks."""
    return sorted(path for path in folder.glob("[0-9]*.sock") if path.is_socket())
