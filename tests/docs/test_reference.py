"""The reference is what the code says, and the code says something of everything."""

import json
import re
import textwrap
from types import ModuleType

import pytest
import typer
from handbook import api_page, commands_page, errors_page, measured, metrics_page, reference, settings_page
from handbook.undocumented import Undocumented
from prometheus_client.core import CounterMetricFamily
from pydantic import Field
from pydantic_settings import BaseSettings

from blocks import PAGES, place_of
from freeloop import errors


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # without a .env


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_page_is_up_to_date(name):
    assert (reference.FOLDER / name).read_text("utf-8") == reference.PAGES[name](), (
        "the code has changed: python3 run.py docs --write"
    )


@pytest.mark.parametrize("page", PAGES, ids=place_of)
def test_the_numbers_are_those_that_were_measured(page):
    text = page.read_text("utf-8")
    assert measured.fill(text) == text, "bench/results have changed: python3 run.py docs --write"


@pytest.mark.parametrize("measured_yet", [True, False])
def test_what_each_detector_says_of_each_way_is_shown(tmp_path, monkeypatch, measured_yet):
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    ours = {"missed": [], "unnamed": [], "false": []}
    other = {"missed": ["json"], "unnamed": ["sleep"], "false": ["awaits"]}
    result = {"ways": ["sleep", "json"], "innocent": ["awaits"], "peers": {"Freeloop": ours, "other": other}}
    if not measured_yet:
        assert measured.show_detectors() == "Not measured yet: `python3 run.py bench watch`."
        return
    (tmp_path / "watch.json").write_text(json.dumps(result))
    rows = [re.split(r" *\| *", line)[1:-1] for line in measured.show_detectors().splitlines()[2:]]
    assert rows == [
        ["`sleep`", "line", "found"],
        ["`json`", "line", "–"],
        ["no block: `awaits`", "quiet", "wrong"],
    ]


def test_a_default_that_is_made_anew_is_shown_as_what_it_is():
    assert "Undefined" not in settings_page.render()


def test_an_undocumented_setting_fails():
    class Settings(BaseSettings):
        port: int = Field(8000, json_schema_extra={"allowed": "any", "unit": ""})

    with pytest.raises(Undocumented, match="the setting FREELOOP_PORT"):
        settings_page.render(Settings)


def test_an_undocumented_command_fails():
    app = typer.Typer(help="All of them.")
    app.command("hush")(lambda: None)
    app.command("other", help="It has help.")(lambda: None)
    with pytest.raises(Undocumented, match="the command 'freeloop hush'"):
        commands_page.render(app)


def test_an_undocumented_option_fails():
    app = typer.Typer(help="All of them.")

    @app.command()
    def hush(loud: bool = False) -> None:
        """It has help."""

    app.command("other", help="It has help.")(lambda: None)
    with pytest.raises(Undocumented, match="--loud"):
        commands_page.render(app)


@pytest.mark.parametrize("documented", [True, False])
def test_an_undocumented_error_fails(documented):
    module = ModuleType("errors", errors.__doc__)
    module.FreeloopError = errors.FreeloopError
    module.Stray = type("Stray", (errors.FreeloopError,), {"__doc__": "Went astray."} if documented else {})
    with pytest.raises(Undocumented, match="Stray"):  # also where the drawn tree leaves it out
        errors_page.render(module)
    module.__doc__ = module.__doc__.replace("    ├── StartError", "    ├── Stray\n    ├── StartError")
    if documented:
        assert "| `Stray` | 500 |" in errors_page.render(module)
    else:
        with pytest.raises(Undocumented, match="the error Stray"):
            errors_page.render(module)


def test_an_undocumented_metric_fails():
    with pytest.raises(Undocumented, match="the metric freeloop_things_total"):
        metrics_page.render([CounterMetricFamily("freeloop_things", "")])


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def hush():\n    return 1\n", "hush"),
        ('class Loud:\n    """It has words."""\n\n    def hush(self):\n        return 1\n', "hush"),
        ("hush = 1\n", "hush"),
    ],
)
def test_an_undocumented_public_name_fails(tmp_path, source, name):
    package = f"hushed_{abs(hash(source))}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(textwrap.dedent(source))
    with pytest.raises(Undocumented, match=name):
        api_page.render([package], tmp_path)
