"""The two READMEs say the same, and what they say is so."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from freeloop.service.app import create_app
from freeloop.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
READMES = ["README.md", "README.zh-TW.md"]
EVERYWHERE = [*READMES, "CONTRIBUTING.md", *map(str, Path(ROOT, "docs").rglob("*.md"))]


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


@pytest.mark.parametrize("page", EVERYWHERE)
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


def links_elsewhere(text):
    """Return the links to other sites: behind their words, or as they are between < and >."""
    return [behind or bare for behind, bare in re.findall(r"\]\((\w+:[^)]*)\)|<(\w+://[^>]*)>", text)]


def is_sound(link):
    """Whether a link can be followed as it stands: https, a host with a domain, characters of RFC 3986 only.

    Nothing is asked of the site, which may be away while the tests run. The service itself is at http.
    """
    try:
        parts = urlsplit(link)
        port = parts.port
    except ValueError:
        return False
    if parts.hostname == "127.0.0.1":
        return parts.scheme == "http" and port is not None
    return (
        parts.scheme == "https"
        and port is None
        and parts.username is None
        and re.fullmatch(r"(?:[a-z\d](?:[a-z\d-]*[a-z\d])?\.)+[a-z]{2,}", parts.netloc) is not None
        and re.fullmatch(r"(?:[\w\-.~:/?#@!$&'*+,;=]|%[\dA-F]{2})+", link, re.ASCII) is not None
        and link[-1] not in ".,;:"
    )


@pytest.mark.parametrize("page", EVERYWHERE)
def test_every_link_to_elsewhere_is_sound(page):
    unsound = [link for link in links_elsewhere((ROOT / page).read_text("utf-8")) if not is_sound(link)]
    assert not unsound


def test_links_to_elsewhere_are_found():
    found = {link for page in EVERYWHERE for link in links_elsewhere((ROOT / page).read_text("utf-8"))}
    assert "https://www.rfc-editor.org/rfc/rfc9457" in found  # behind words
    assert "http://127.0.0.1:8000" in found  # as it is


@pytest.mark.parametrize(
    "link",
    [
        "http://www.rfc-editor.org/rfc/rfc9457",
        "htps://www.rfc-editor.org/rfc/rfc9457",
        "https:/www.rfc-editor.org/rfc/rfc9457",
        "https://rfc-editor/rfc9457",
        "https://www..rfc-editor.org/rfc9457",
        "https://www.rfc-editor.org/rfc/rfc 9457",
        "https://www.rfc-editor.org/rfc/rfc9457.",
        "https://www.rfc-editor.org/%zz",
        "https://user@www.rfc-editor.org/",
        "https://www.rfc-editor.org:x/",
        "http://127.0.0.1",
    ],
)
def test_an_unsound_link_is_found(link):
    assert links_elsewhere(f"See [this]({link}).") == [link]
    assert not is_sound(link)
