"""The wheel that is built of the checkout, and an environment that has nothing but it and what it needs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Return the wheel's file."""
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, ROOT],
        check=True,
        capture_output=True,
    )
    return next(target.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """Return the folder of an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "environment"
    python = environment / "bin" / "python"
    uv = shutil.which("uv")
    if uv:
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, environment], check=True)
        install = [uv, "pip", "install", "-q", "--python", python]
    else:
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    # The locked versions, without hashes: a constraint with a hash would ask for one of the wheel too.
    locked = (ROOT / "requirements" / "dev.txt").read_text().splitlines()
    pins = folder / "pins.txt"
    pins.write_text("\n".join(line.rstrip(" \\") for line in locked if "==" in line))
    subprocess.run([*install, "-c", pins, wheel], check=True, timeout=110)
    return environment
