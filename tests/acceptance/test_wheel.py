"""The wheel alone, installed into an empty environment, runs from another folder."""

import asyncio
import zipfile
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parents[2]


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


def test_the_installed_wheel_serves_from_another_folder(installed, start, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    service = start(command=(str(installed / "bin" / "freeloop"),), cwd=elsewhere, HOME=str(elsewhere))

    async def read(url):
        async with aiohttp.ClientSession(url) as client:
            for path in ("/readyz", "/fetch-data", "/items", "/docs", "/console"):
                async with client.get(path) as answer:
                    assert answer.status == 200, await answer.text()

    asyncio.run(read(service.url))
    assert service.stop() == 0
    assert not list(elsewhere.iterdir())
