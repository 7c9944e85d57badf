"""The other commands, as they are typed."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def run(tmp_path, data_dir):
    def run(*arguments, **environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FREELOOP_")}
        return subprocess.run(
            [sys.executable, "-m", "freeloop", *arguments],
            env={**clean, "FREELOOP_DATA_DIR": str(data_dir / "commands"), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def test_migrate_shows_its_plan_applies_it_once_and_is_then_done(run):
    assert run("migrate", "--plan").stdout == "pending  0001-items\n"
    assert run("migrate").stdout == "applied  0001-items\n"
    assert run("migrate").stdout == ""
    assert run("migrate", "--plan").stdout == "applied  0001-items\n"


def test_settings_shows_value_source_unit_and_default_and_masks_secrets(run, tmp_path):
    (tmp_path / ".env").write_text("FREELOOP_THREADS=7\n")
    shown = run("settings", FREELOOP_TOKEN="a-token-of-20-letters", FREELOOP_PROT="1")  # noqa: S106 - a test secret
    rows = {line.split()[0]: line.split() for line in shown.stdout.splitlines() if line.strip()}
    assert rows["FREELOOP_THREADS"][:5] == ["FREELOOP_THREADS", "7", ".env", "threads", "40"]
    assert rows["FREELOOP_TOKEN"][1:3] == ["********", "environment"]
    assert "a-token" not in shown.stdout
    assert shown.stderr == "freeloop: FREELOOP_PROT is not a setting; is FREELOOP_PORT meant?\n"


def test_other_hosts_are_refused_without_a_token(run):
    refused = run("serve", "--host", "0.0.0.0")  # noqa: S104 - refused here
    assert refused.returncode == 1
    assert "FREELOOP_TOKEN" in refused.stderr


def test_with_a_url_nothing_of_the_embedded_server_is_imported(run):
    program = """
import asyncio, sys
from freeloop.kit import open_address
from freeloop.service.app import create_app
from freeloop.settings import load_settings
async def main():
    async with open_address(load_settings()) as (address, server):
        assert server is None
asyncio.run(main())
create_app(load_settings())
assert not [name for name in sys.modules if "embedded" in name], "imported"
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FREELOOP_DATABASE_URL": "postgresql://localhost/x"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
