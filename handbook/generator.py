"""The static site, of the Markdown as it is. A dead link, or one to an anchor that is not there, fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
OUTPUT: Final = Path("build", "site")  # as zensical.toml says


def build(folder: Path = ROOT) -> Path:
    """Build the site of a folder with zensical.toml and docs/; return where it is.

    Raises:
        SystemExit: The generator has found something wrong, and said it.
    """
    done = subprocess.run(
        [sys.executable, "-c", "import zensical.main; zensical.main.cli()", "build", "--clean", "--strict"],
        cwd=folder,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return folder / OUTPUT
