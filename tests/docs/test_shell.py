"""The commands of the pages run. Those of pages that are walked through are run there (test_walks.py)."""

import re
import shlex
import subprocess
import tomllib
from uuid import UUID

import pytest
import typer
from test_walks import WALKS

from blocks import DOCS, PAGES, ROOT, place_of, read_blocks
from freeloop.cli import app
from freeloop.settings import PREFIX, Settings, read_settings
from run_process import Processes

ALL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
# Said here and not on the page, which is for readers.
NOT_RUN = {
    "python3 run.py test": "it is what runs this",
    "python3 run.py check": "it runs this too",
    "uv pip compile": "it asks a package registry; the lock files are checked where they are installed",
}
# Of words that stand for something of the reader's: what is of the same kind.
EXAMPLES = {"ID": f"{UUID(int=1)}"}
APP = "from fastapi import FastAPI\napp = FastAPI()\n"


def list_commands():
    for page in ALL:
        if place_of(page) in WALKS:
            continue
        for block in read_blocks(page):
            if block.language == "sh" and not block.reason:
                joined = block.text.replace("\\\n", " ")
                for line in filter(None, map(str.strip, joined.splitlines())):
                    if not line.startswith("#"):
                        yield pytest.param(line, id=f"{block}-{line[:40]}")


def kind_of(line):
    """Return how a line is run; None: nobody knows."""
    if any(map(line.startswith, NOT_RUN)):
        return "not run"
    if line.startswith(PREFIX):
        return "settings"
    kinds = ["curl", "python3 run.py serve", "freeloop run", "freeloop", "pip install", "python3 run.py docs"]
    return next((kind for kind in kinds if line.startswith(kind + " ") or line == kind), None)


@pytest.mark.parametrize("line", [*list_commands()])
def test_somebody_knows_how_to_run_it(line):
    assert kind_of(line), "teach test_shell.py to run it, or say <!-- not run: reason --> before the block"


def of_kind(*kinds):
    return [param for param in list_commands() if kind_of(param.values[0]) in kinds]


@pytest.mark.parametrize("line", of_kind("curl"))
def test_the_service_answers(service, line):
    url = service.url.removesuffix("/")
    endless = "-N" in line.split()
    done = subprocess.run(
        ["bash", "-c", line.replace("http://127.0.0.1:8000", url) + " -fsS" + " --max-time 2" * endless],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == (28 if endless else 0), done.stderr  # 28: its time was up, as said


@pytest.mark.parametrize("line", of_kind("settings"))
def test_the_settings_are_accepted(line, monkeypatch):
    words = shlex.split(line.partition("  #")[0])
    given = dict(word.split("=", 1) for word in words if word.startswith(PREFIX))
    assert {name.removeprefix(PREFIX).lower() for name in given} <= set(Settings.model_fields)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    read_settings()
    rest = words[len(given) :]
    assert not rest or kind_of(shlex.join(rest)), rest


@pytest.mark.parametrize("line", of_kind("freeloop run"))
def test_an_app_is_run(line, tmp_path):
    (tmp_path / "main.py").write_text(APP)
    with Processes() as processes:
        run = processes.freeloop(
            *shlex.split(line, comments=True)[2:], cwd=tmp_path, FREELOOP_DRAIN_DELAY="0"
        )
        assert run.get("/openapi.json").status == 200
        assert run.stop() == 0


def test_the_service_is_started_as_the_pages_say(service):
    assert of_kind("python3 run.py serve")
    assert service.url  # by the fixture


def list_shown():
    """List the commands that stand in a block of text, with words behind them that are no part of them."""
    for page in ALL:
        for block in read_blocks(page):
            if block.language in {"text", ""}:
                for line in re.findall(r"^freeloop .+$", block.text, re.MULTILINE):
                    yield pytest.param(re.split(r"\s{2,}", line)[0], id=f"{block}-{line[:40]}")


def list_mentioned():
    for page in ALL:
        for line in re.findall(r"`(freeloop [^`]+)`", page.read_text("utf-8")):
            yield pytest.param(line, id=f"{place_of(page)}-{line}")


def find_command(words):
    """Return the command that the first words are the name of, and the words behind it."""
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", ()):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(line):
    """Take a line as the command line does, without running it; what is wrong with it is raised."""
    command, words = find_command(shlex.split(line, comments=True)[1:])
    assert not hasattr(command, "commands"), f"no command: {line}"
    command.make_context(command.name, [EXAMPLES.get(word, word) for word in words])


@pytest.mark.parametrize("line", [*of_kind("freeloop", "freeloop run"), *list_shown()])
def test_the_command_takes_these_words(line):
    parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "freeloop pss",
        "freeloop ps --jsno",
        "freeloop tasks",
        "freeloop tasks list --state",
        "freeloop tasks show",
        "freeloop tasks show 1",
        "freeloop top shop:app other:app",
        "freeloop run main:app --workers many",
    ],
)
def test_a_word_that_a_command_does_not_take_is_found(line):
    with pytest.raises((AssertionError, typer.BadParameter.__base__)):
        parse(line)


@pytest.mark.parametrize("line", [*list_mentioned()])
def test_a_command_between_words_is_there_with_its_flags(line):
    command, words = find_command(line.split()[1:])
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
    assert {word for word in words if word.startswith("-")} <= known
    assert not hasattr(command, "commands") or not words or words[0].startswith("-"), "no such command"


@pytest.mark.parametrize("line", of_kind("pip install"))
def test_what_is_installed_is_there(line):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (name, extra) = re.search(r"(\w+)(?:\[(\w+)\])?", shlex.split(line)[2]).groups()
    assert name == project["name"]
    assert extra is None or extra in project["optional-dependencies"]


def test_the_comparison_of_async_with_threads_runs():
    (block,) = [each for each in read_blocks(DOCS / "what-async-gives.md") if each.title]
    names = {"__name__": "beside"}
    exec(compile(block.text, block.title, "exec"), names)  # noqa: S102 - our own page
    seconds = names["measure"]()
    assert seconds["awaited"] < seconds["40 threads"] < seconds["one after the other"]
