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
from freeloop.settings import Settings


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


TABLES = {
    "date": "2026-01-02",
    "steps": [
        {"rows": 1_000, "log_page_ms": 1, "task_page_ms": 1, "log_bytes": 200, "task_bytes": 300},
        {"rows": 1_000_000, "log_page_ms": 1, "task_page_ms": 1, "log_bytes": 200, "task_bytes": 300},
    ],
}


def rows_of(text):
    return [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line.startswith("|")][2:]


def write_result(folder, case, result):
    (folder / f"{case}.json").write_text(json.dumps(result))


def test_what_pruning_takes_is_not_known_until_it_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    write_result(tmp_path, "tables", TABLES)
    assert [row[-2:] for row in rows_of(measured.show_tables())] == [["not measured yet"] * 2] * 2
    assert {row[1] for row in rows_of(measured.show_pruning())} == {"not measured yet"}
    assert "PostgreSQL 18." in measured.show_tables()


def test_what_pruning_takes_is_shown_beside_the_drop_of_a_partition(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    steps = [{**step, "task_deleted_us": 20.0, "partition_dropped_ms": 12.34} for step in TABLES["steps"]]
    write_result(tmp_path, "tables", {**TABLES, "steps": steps, "versions": {"PostgreSQL": "18.4"}})
    pruning = [row[-2:] for row in rows_of(measured.show_tables())]
    assert pruning == [["0.0 s", "12.3 ms"], ["20.0 s", "12.3 ms"]]
    assert rows_of(measured.show_pruning())[-1] == ["1,000", "2.00 %", "86,400,000", "1,728.0 s"]
    assert "PostgreSQL 18.4." in measured.show_tables()


@pytest.mark.parametrize("measured_yet", [True, False])
def test_what_a_rate_of_tasks_needs_follows_what_was_measured(tmp_path, monkeypatch, measured_yet):
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    if not measured_yet:
        assert measured.show_task_rates() == "Not measured yet: `python3 run.py bench tasks`."
        return
    ours = {"drained": {"median": 1_000.0}, "cpu_us": {"median": 800.0}}
    write_result(tmp_path, "tasks", {"peers": {"Freeloop": ours}})
    assert rows_of(measured.show_task_rates()) == [
        ["1×", "50", "4.3 million", "1", "1"],
        ["10×", "500", "43.2 million", "1", "1"],
        ["100×", "5,000", "432.0 million", "8", "10"],
        ["1,000×", "50,000", "4,320.0 million", "80", "100"],
    ]


def test_what_waits_in_queues_follows_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    write_result(tmp_path, "tables", TABLES)
    distinct = {"cpu": {"median": 500.0}}
    write_result(tmp_path, "items", {"peers": {"Freeloop": {"distinct": distinct}}})
    assert rows_of(measured.show_queues()) == [
        ["1×", "1", "100", "20.5 s", "200", "180,000", "0.05 GB"],
        ["10×", "1", "1,000", "2.0 s", "2,000", "1,800,000", "0.54 GB"],
        ["100×", "10", "1,000", "2.0 s", "2,000", "18,000,000", "5.40 GB"],
        ["1,000×", "100", "1,000", "2.0 s", "2,000", "180,000,000", "54.00 GB"],
    ]


def test_the_defaults_that_are_counted_with_are_those_of_the_settings():
    fields = Settings.model_fields
    assert fields["database_acquire_timeout"].default == measured._ACQUIRE
    assert fields["database_pool_size"].default == measured._CONNECTIONS
    assert "| `--backlog` | `2048` |" in (reference.FOLDER / "commands.md").read_text("utf-8")
    assert measured._BACKLOG == 2048


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
