"""No number of the benchmarks' pages is typed by hand: each block is what its result renders to."""

import importlib
import json
import re
from pathlib import Path

import pytest
from bench.cases import CHECKED, NAMES
from bench.report import describe_machine, judge, judge_least, replace_block

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")


def block(text, name):
    found = re.search(rf"<!-- bench:{name} -->\n(.*?)\n<!-- /bench:{name} -->", text, re.DOTALL)
    assert found, f"docs/benchmarks.md has no markers of the case {name}"
    return found[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_case_shows_what_was_measured(name):
    file = ROOT / "bench" / "results" / f"{name}.json"
    if not file.is_file():
        assert block(PAGE, name) == f"Not measured yet: `python3 run.py bench {name}`."
        return
    result = json.loads(file.read_text("utf-8"))
    case = importlib.import_module(f"bench.cases.{name}")
    text = f"{case.document(result)}\n\n{describe_machine(result['machine'])}"
    assert block(PAGE, name) == text.strip(), "write the page anew: python3 run.py bench --render"
    for readme, language in (("README.md", "en"), ("README.zh-TW.md", "zh-TW")):
        shown = (ROOT / readme).read_text("utf-8")
        if f"<!-- bench:{name} -->" in shown:
            assert block(shown, name) == case.summarize_for_readme(result, language).strip()


@pytest.mark.parametrize("name", CHECKED)
def test_what_is_checked_has_a_check(name):
    assert callable(importlib.import_module(f"bench.cases.{name}").check)


@pytest.mark.parametrize(
    ("low", "high", "most", "least"),
    [
        (1.0, 2.0, "kept", "**missed**"),
        (3.0, 4.0, "**missed**", "kept"),
        (2.0, 3.0, "kept in some rounds, **missed** in others", "kept in some rounds, **missed** in others"),
    ],
)
def test_a_target_is_kept_in_all_rounds_or_not_at_all(low, high, most, least):
    measured = {"median": (low + high) / 2, "low": low, "high": high}
    assert judge(measured, 2.5) == most
    assert judge_least(measured, 2.5) == least


def test_only_the_block_of_its_case_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- bench:wait -->\nold\n<!-- /bench:wait -->\nb\n")
    assert replace_block(page, "wait", "new\n")
    assert page.read_text() == "a\n<!-- bench:wait -->\nnew\n<!-- /bench:wait -->\nb\n"
    assert not replace_block(page, "tasks", "new")
