"""The wheel alone, installed into an empty environment, runs from another folder."""

import asyncio
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import aiohttp
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, ROOT],
        check=True,
        capture_output=True,
    )
    return next(target.glob("*.whl"))


def test_the_wheel_holds_migrations_templates_static_files_and_sample_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "freeloop/service/migrations/0001-items.sql" in names
    assert any(name.startswith("freeloop/service/sample/") and name.endswith(".json") for name in names)
    for folder in ("console/templates", "console/static", "console/catalogue", "service/static/swagger-ui"):
        files = (ROOT / "src" / "freeloop" / folder).rglob("*")
        missing = {str(each.relative_to(ROOT / "src")) for each in files if each.is_file()} - set(names)
        assert not missing
    assert "freeloop/py.typed" in names
    assert not [name for name in names if "__pycache__" in name or "tests" in name]


def test_the_installed_wheel_serves_from_another_folder(wheel, start, tmp_path):
    environment = tmp_path / "environment"
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
    pins = tmp_path / "pins.txt"
    pins.write_text("\n".join(line.rstrip(" \\") for line in locked if "==" in line))
    subprocess.run([*install, "-c", pins, wheel], check=True, timeout=110)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    service = start(command=(str(environment / "bin" / "freeloop"),), cwd=elsewhere, HOME=str(elsewhere))

    async def read(url):
        async with aiohttp.ClientSession(url) as client:
            for path in ("/readyz", "/fetch-data", "/items", "/docs", "/console"):
                async with client.get(path) as answer:
                    assert answer.status == 200, await answer.text()

    asyncio.run(read(service.url))
    assert service.stop() == 0
    assert not list(elsewhere.iterdir())
