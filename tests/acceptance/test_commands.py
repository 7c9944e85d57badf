"""The other commands, as they are typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    files = ("0001-items", "0002-imported-posts")
    applied = "".join(f"applied  {name}\n" for name in files)
    assert run("migrate", "--plan").stdout == "".join(f"pending  {name}\n" for name in files)
    assert run("migrate").stdout == applied
    assert run("migrate").stdout == ""
    assert run("migrate", "--plan").stdout == applied
    assert json.loads(run("migrate", "--plan", "--json").stdout) == {"applied": [*files], "pending": []}


def test_settings_shows_value_source_unit_and_default_and_masks_secrets(run, tmp_path):
    (tmp_path / ".env").write_text("FREELOOP_THREADS=7\n")
    shown = run("settings", FREELOOP_TOKEN="a-token-of-20-letters", FREELOOP_PROT="1")  # noqa: S106 - a test secret
    rows = {line.split()[0]: line.split() for line in shown.stdout.splitlines() if line.strip()}
    assert rows["FREELOOP_THREADS"][:5] == ["FREELOOP_THREADS", "7", ".env", "threads", "40"]
    assert rows["FREELOOP_TOKEN"][1:3] == ["********", "environment"]
    assert "a-token" not in shown.stdout
    assert shown.stderr == "freeloop: FREELOOP_PROT is not a setting; is FREELOOP_PORT meant?\n"


def test_settings_are_printed_as_json_and_masked(run):
    shown = run("settings", "--json", FREELOOP_TOKEN="a-token-of-20-letters", FREELOOP_THREADS="7")  # noqa: S106 - a test secret
    rows = {row["setting"]: row for row in json.loads(shown.stdout)}
    assert rows["FREELOOP_TOKEN"]["value"] == "********"
    assert (rows["FREELOOP_THREADS"]["value"], rows["FREELOOP_THREADS"]["from"]) == ("7", "environment")
    assert (rows["FREELOOP_THREADS"]["unit"], rows["FREELOOP_THREADS"]["default"]) == ("threads", "40")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("srve",), "Did you mean 'serve'?"),
        (("tasks", "lst"), "Did you mean 'list'?"),
        (("serve", "--prot", "1"), "Possible options: --host, --port"),
        (("tasks", "list", "--state", "done"), "expected one of queued, "),
    ],
)
def test_a_misspelt_word_is_wrong_usage_and_the_right_one_is_told(run, arguments, said):
    wrong = run(*arguments, COLUMNS="200")
    assert wrong.returncode == 2
    assert said in wrong.stderr


def test_what_fails_has_exit_code_1_and_one_line(run):
    for arguments, settings in ((["top"], {}), (["settings"], {"FREELOOP_PORT": "many"})):
        failed = run(*arguments, **settings, FREELOOP_RUNTIME_DIR="sockets")
        assert failed.returncode == 1
        assert failed.stderr.startswith("freeloop: ")
        assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "words"), [("freeloop mig", {"migrate"}), ("freeloop tasks ", {"list", "retry"})]
)
def test_the_shell_completes_commands(typed, words):
    shown = subprocess.run(
        [Path(sys.executable).with_name("freeloop")],
        env={
            **os.environ,
            "_FREELOOP_COMPLETE": "complete_bash",  # as the line that --show-completion gives for bash does
            "COMP_WORDS": typed,
            "COMP_CWORD": str(typed.count(" ")),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert words <= {*shown.stdout.split()}


def test_other_hosts_are_refused_without_a_token(run):
    refused = run("serve", "--host", "0.0.0.0")  # noqa: S104 - refused here
    assert refused.returncode == 1
    assert "FREELOOP_TOKEN" in refused.stderr


def test_with_a_url_nothing_of_the_embedded_server_is_imported(run):
    program = """
import asyncio, sys
from freeloop.resources import open_address
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


def test_the_command_line_itself_imports_nothing_that_one_command_alone_needs():
    program = """
import sys
import freeloop.cli
for name in ("fastapi", "starlette", "pydantic", "uvicorn", "asyncpg", "aiohttp", "rich.table"):
    assert name not in sys.modules, name
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
