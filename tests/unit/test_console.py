"""Access, words and shared views, without a browser."""

import asyncio
import re
import string
import tomllib
from pathlib import Path

import pytest
from fastapi import FastAPI

import freeloop.console
from freeloop import Freeloop
from freeloop.console import access
from freeloop.console.live import Shared
from freeloop.console.texts import LANGUAGES, Texts, choose_language, load_texts, say_number, say_seconds
from serving import served

HERE = Path(freeloop.console.__file__).parent
TOKEN = "a-token-of-this-test"  # noqa: S105 - of this test


def read(language):
    parts = tomllib.loads((HERE / "catalogue" / f"{language}.toml").read_text("utf-8"))
    return {f"{part}.{key}": text for part, texts in parts.items() for key, text in texts.items()}


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_the_catalogues_have_the_same_keys_and_values():
    english, chinese = read("en"), read("zh-TW")
    assert english.keys() == chinese.keys()
    assert {key: fields(text) for key, text in english.items()} == {
        key: fields(text) for key, text in chinese.items()
    }
    assert set(LANGUAGES) == {path.stem for path in (HERE / "catalogue").glob("*.toml")}


def test_every_text_that_a_template_names_is_there():
    source = "".join(path.read_text("utf-8") for path in (HERE / "templates").glob("*.html"))
    named = set(re.findall(r"""\bt\('([a-z_]+\.[a-z_-]+)'""", source + (HERE / "app.py").read_text("utf-8")))
    assert len(named) > 80
    assert {key for key in named if not key.endswith("_")} <= read("en").keys()


def test_every_sentence_has_its_words():
    codes = re.findall(
        r'Sentence\(\s*"([a-z_]+)"|Sentence\("([a-z_]+)" if|else "([a-z_]+)", "bad"',
        (HERE.parent / "insights" / "diagnosis.py").read_text("utf-8"),
    )
    wanted = {f"diagnosis.{next(filter(None, each))}" for each in codes}
    assert len(wanted) >= 10
    assert wanted == {key for key in read("en") if key.startswith("diagnosis.")}


def test_values_are_said_as_people_do():
    texts = Texts("en", {"a.b": "{count} in {seconds} by {process}"})
    assert texts("a.b", count=12345, seconds=0.25, process=12345) == "12,345 in 0.25 s by 12345"
    assert load_texts("zh-TW")("nav.now") == "現況"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((None, "–"), (0.0, "0 ms"), (0.0012, "1.2 ms"), (0.0994, "99.4 ms"), (0.25, "0.25 s")),
        *((4.0, "4.0 s"), (99.94, "99.9 s"), (200.0, "3 min 20 s"), (7260.0, "2 h 1 min")),
    ],
)
def test_durations(seconds, said):
    assert say_seconds(seconds) == said


def test_numbers():
    assert [say_number(each) for each in (None, 3, 1234.0, 0.25)] == ["–", "3", "1,234", "0.25"]


@pytest.mark.parametrize(
    ("chosen", "accepted", "language"),
    [
        *((None, "", "en"), (None, "zh-TW,zh;q=0.9", "zh-TW"), (None, "zh-Hant-HK", "zh-TW")),
        *((None, "de", "en"), ("en", "zh-TW", "en"), ("xx", "zh-TW", "zh-TW")),
    ],
)
def test_the_language_is_chosen(chosen, accepted, language):
    assert choose_language(chosen, accepted) == language


@pytest.mark.parametrize(
    ("client", "headers", "local"),
    [
        ("127.0.0.1", {"host": "localhost:8000"}, True),
        ("::1", {"host": "[::1]:8000"}, True),
        ("127.0.0.1", {"host": "evil.example"}, False),
        ("127.0.0.1", {}, False),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-for": "1.2.3.4"}, False),
        ("10.0.0.2", {"host": "localhost"}, False),
        (None, {"host": "localhost"}, False),
    ],
)
def test_who_is_of_this_machine(client, headers, local):
    assert access.is_local(client, headers) is local


def test_a_session_ends_and_belongs_to_its_token():
    cookie = access.sign_session(TOKEN, 1_000.0)
    assert access.is_session(cookie, TOKEN, 1_000.0 + access.LASTS - 1)
    assert not access.is_session(cookie, TOKEN, 1_000.0 + access.LASTS)
    assert not access.is_session(cookie, "another-token-of-it", 1_000.0)
    assert not access.is_session("9" + cookie, TOKEN, 1_000.0)
    for wrong in ("", ".", "x", "1.2", cookie[:-1], "９" + cookie[1:], cookie + "é"):
        assert not access.is_session(wrong, TOKEN, 1_000.0)


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"host": "a:1", "origin": "http://a:1"}, True),
        ({"host": "a:1", "origin": "https://a:1"}, True),
        ({"host": "a:1"}, False),
        ({"host": "a:1", "origin": "null"}, False),
        ({"host": "a:1", "origin": "http://a:2"}, False),
        ({"origin": "http://"}, False),
    ],
)
def test_an_action_comes_from_our_own_page(headers, own):
    assert access.is_same_origin(headers, "http") is own


async def test_a_view_is_made_once_for_all_who_look():
    made = []

    async def make():
        made.append(1)
        await asyncio.sleep(0)
        return len(made)

    shared = Shared()
    assert await asyncio.gather(*(shared.get("page", 60.0, make) for _ in range(20))) == [1] * 20
    assert await shared.get("other", 60.0, make) == 2
    shared.clear()
    assert await shared.get("page", 60.0, make) == 3


@pytest.fixture
def app_with_console():
    app = FastAPI()
    Freeloop(app, console="/ops")

    @app.get("/console")
    async def show_own():
        return "own"

    return app


async def test_an_app_has_it_where_it_says_and_keeps_its_own_routes(app_with_console):
    async with served(app_with_console, lifespan="on") as (client, _):
        async with client.get("/ops/now") as answer:
            assert answer.status == 200
            assert "text/html" in answer.headers["Content-Type"]
        async with client.get("/console") as answer:
            assert await answer.json() == "own"


async def test_where_the_waits_cannot_be_read_now_says_so(app_with_console, monkeypatch, caplog):
    def look(_):
        raise KeyError("_fut_waiter")

    async with served(app_with_console, lifespan="on") as (client, _):
        monkeypatch.setattr("freeloop.tree.look.Tree.look", look)
        async with client.get("/ops/now") as answer:
            assert answer.status == 200
            assert "KeyError" in await answer.text()
    (record,) = [record for record in caplog.records if "could not be read" in record.message]
    assert record.exc_info[0] is KeyError
