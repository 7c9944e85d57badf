"""The same truth in a terminal: top, blocks, tasks and doctor."""

import json
import os
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from terminal import Terminal, where
from typer.main import get_command

from conftest import open_shop
from freeloop.cli import app

HERE = Path(__file__).parent


@pytest.fixture
def freeloop(shop):
    def run(*arguments, code=0, cwd=HERE, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "freeloop", *arguments],
            env={**os.environ, **where(shop), "COLUMNS": "160", **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


def test_top_and_blocks_tell_of_a_blocked_loop(shop, freeloop):
    shop.get("/report")
    shop.ask("/wait")
    told = freeloop("top", "--once")
    assert "/report blocked the event loop for" in told
    told = json.loads(freeloop("top", "--json"))
    assert "blocked" in [each["code"] for each in told["sentences"]]
    told = freeloop("blocks", "Shop")
    assert "shop.py" in told
    assert "await asyncio.sleep" in told
    assert json.loads(freeloop("blocks", "--json"))["blocks"][0]["route"] == "/report"


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_top_on_a_terminal_follows_its_size_and_leaves_it_as_it_was(shop, key):
    with Terminal("top", **where(shop)) as terminal:
        shop.ask("/wait?seconds=20")
        terminal.see("\x1b[?1049h")  # the other screen
        terminal.see("/wait")
        terminal.see_width(100)
        terminal.resize(30, 60)
        terminal.see_width(60)
        terminal.type(key)
        assert terminal.process.wait(20) == 0
        terminal.see("\x1b[?1049l")
        terminal.see("\x1b[?25h")  # the cursor is shown again
        assert termios.tcgetattr(terminal.inner) == terminal.before


def see_now(shop, *codes):
    """Wait until there is a sentence whose code begins with each of these."""
    until = time.monotonic() + 30
    while True:
        told = {each["code"] for each in json.loads(shop.get("/console/now.json"))["sentences"]}
        if all(any(each.startswith(code) for each in told) for code in codes):
            return
        assert time.monotonic() < until, told
        time.sleep(0.2)


def test_blocks_ps_and_tasks_tell_each_trouble(shop, freeloop):
    shop.ask("/export?seconds=40", "/deadlock")
    shop.ask(*["/quotes"] * 25)
    see_now(shop, "breaker_", "deadlock")  # it is open, or its next call is due
    told = freeloop("top", "--once")
    assert "quotes fails and is left alone" in told
    assert "Deadlock: " in told
    told = freeloop("ps")
    assert "/deadlock" in told
    assert "/export" in told
    id_ = json.loads(shop.get("/start/invoice"))
    shop.logged("task failed", task_id=id_)
    assert "ConnectionRefusedError: no printer for invoice 7" in freeloop("tasks", "list")
    (row,) = json.loads(freeloop("tasks", "list", "--state", "failed", "--json"))
    assert (row["id"], row["state"]) == (id_, "failed")
    assert json.loads(freeloop("tasks", "show", id_))["error"]["type"] == "ConnectionRefusedError"
    assert json.loads(freeloop("tasks", "retry", id_, "--json"))["done"] is True
    assert json.loads(freeloop("tasks", "cancel", id_, "--json"))["id"] == id_


def list_commands(group, *words):
    """Yield the words of each command, from the command line itself."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from list_commands(command, *words, name)
        else:
            yield (*words, name)


def test_every_command_that_prints_prints_json(shop, freeloop):
    id_ = json.loads(shop.get("/start/invoice"))
    shop.logged("task failed", task_id=id_)
    arguments = {
        ("blocks",): (),
        ("doctor",): ("shop.py",),
        ("migrate",): ("--plan",),
        ("ps",): (),
        ("settings",): (),
        ("top",): (),
        ("tasks", "list"): (),
        ("tasks", "show"): (id_,),
        ("tasks", "cancel"): (id_,),
        ("tasks", "retry"): (id_,),
    }
    serving = {("serve",), ("run",), ("worker",)}  # they print nothing but their log
    assert {*list_commands(get_command(app))} == arguments.keys() | serving
    for command, given in arguments.items():
        told = freeloop(*command, *given, "--json")
        assert isinstance(json.loads(told), dict | list), command


def test_ps_lists_several_processes_as_json(shop, freeloop):
    with open_shop(FREELOOP_RUNTIME_DIR=shop.folder / "run") as other:
        listed = json.loads(freeloop("ps", "--json"))
    assert {each["pid"] for each in listed} == {shop.run.process.pid, other.run.process.pid}
    assert all("shop.py" in each["title"] for each in listed)


def test_each_trouble_is_told_on_a_terminal(shop):
    id_ = json.loads(shop.get("/start/invoice"))
    shop.logged("task failed", task_id=id_)
    shop.get("/report")
    shop.ask(*["/export?seconds=25"] * 3, "/deadlock", *["/quotes"] * 25)
    see_now(shop, "deadlock")
    shop.ask("/orders", "/orders")
    with Terminal("top", **where(shop)) as terminal:
        terminal.see("Deadlock: ")
        terminal.see("blocked the event loop for")
        terminal.see("The pool 'main' is empty: /export holds 3 of 3")
        terminal.see("quotes fails and is left alone")
    for command, told in (
        (("blocks",), "Write 'await asyncio.sleep(seconds)'."),
        (("ps",), "a connection of pool 'main' (3 of 3 lent)"),
        (("tasks", "list"), "ConnectionRefusedError: no printer for invoice 7"),
    ):
        with Terminal(*command, **where(shop)) as terminal:
            terminal.see(told)
            assert terminal.process.wait(20) == 0


def test_a_process_that_is_not_there(freeloop):
    freeloop("top", "no-such-app", "--once", code=1)


def test_doctor_finds_what_an_app_will_stumble_over(freeloop, tmp_path):
    (tmp_path / "main.py").write_text(
        "import time\nfrom fastapi import FastAPI\nfrom freeloop import Freeloop, deadline\n"
        "app = FastAPI()\nkit = Freeloop(app)\n"
        "@app.get('/a')\n@deadline(None)\nasync def a():\n    time.sleep(1)\n"
        "@app.get('/b')\ndef b():\n    pass\n"
    )
    found = json.loads(freeloop("doctor", "main:app", "--json", code=1, cwd=tmp_path, FREELOOP_PROT="1"))
    assert {(each["check"], each["severity"]) for each in found} == {
        ("settings", "problem"),
        ("calls", "problem"),
        ("deadline", "problem"),
        ("sync", "note"),
    }
    assert all(each["remedy"] for each in found)  # what to do
    assert freeloop("doctor", "shop.py").startswith("0 problems")


def test_what_takes_longer_than_a_second_says_what_it_does():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://somebody@127.0.0.1:{silent.getsockname()[1]}/shop"
        with Terminal("doctor", str(HERE / "shop.py"), FREELOOP_DATABASE_URL=url) as terminal:
            shown = terminal.see("Looking at the app")
            told = terminal.see("FREELOOP_DATABASE_URL: ", after=shown)
            assert "\x1b[2K" in terminal.drawn[shown:told]  # what was shown is gone by then
            assert terminal.process.wait(20) == 1
