"""The two READMEs say the same, and what they say is so."""

import re
from pathlib import Path

import pytest

from freeloop.service.app import create_app
from freeloop.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
READMES = ["README.md", "README.zh-TW.md"]


@pytest.fixture(params=READMES)
def readme(request):
    return (ROOT / request.param).read_text(encoding="utf-8")


def commands(text):
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def routes(text):
    return re.findall(r"^\| `((?:GET|POST|PATCH|DELETE) /[^`?]*)", text, re.MULTILINE)


def settings(text):
    return dict(re.findall(rf"^\| `({PREFIX}[A-Z_]+)` \| ([^|]*) \|", text, re.MULTILINE))


def test_both_have_the_same_commands_routes_and_settings():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    assert commands(english) == commands(chinese)
    assert routes(english) == routes(chinese)
    assert list(settings(english)) == list(settings(chinese))
    assert re.findall(r"\]\((?!README)[^)]*\)", english) == re.findall(r"\]\((?!README)[^)]*\)", chinese)
    assert english.count("\n## ") == chinese.count("\n## ")


def test_every_setting_is_documented_with_its_default(readme):
    documented = settings(readme)
    assert list(documented) == [PREFIX + name.upper() for name in Settings.model_fields]
    for name, field in Settings.model_fields.items():
        if field.default_factory is None and field.default is not None and not name.endswith("max_body"):
            assert (
                f"`{str(field.default).removesuffix('.0').lower()}"
                in documented[PREFIX + name.upper()].lower()
            )


def test_every_route_is_documented(readme):
    document = create_app(Settings()).openapi()
    served = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert served | {"GET /docs"} == set(routes(readme))


def test_the_commands_are_those_that_run_py_has(readme):
    found = set(re.findall(r"python3 run\.py (\w+)", readme))
    assert found == {"serve", "test", "settings", "docs"}


@pytest.mark.parametrize("page", [*READMES, "CONTRIBUTING.md", *map(str, Path(ROOT, "docs").rglob("*.md"))])
def test_every_relative_link_leads_somewhere(page):
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    for link in links:
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("page", [*READMES, "CONTRIBUTING.md"])
def test_every_anchor_is_there(page):  # those of docs/ are looked at by the site's generator: test_site.py
    links = re.findall(r"\]\((?!https?:)([^)#]+\.md)#([^)]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    for link, anchor in links:
        headings = re.findall(r"^#+ (.+)$", (ROOT / link).read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
