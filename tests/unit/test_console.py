"""Access, words and shared views, without a browser."""

import ast
import asyncio
import inspect
import re
import string
import threading
import time
import tomllib
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi import FastAPI

import freeloop.console
from freeloop import Freeloop
from freeloop.console import access
from freeloop.console.app import Console
from freeloop.console.phrases import ENGLISH
from freeloop.console.texts import LANGUAGES, Texts, choose_language, load_texts, say_number
from freeloop.errors import InspectionFailed
from freeloop.insights import Insights
from freeloop.insights.looks import PATIENCE, REST, SHORTEST, SharedLook
from freeloop.insights.shared import Shared
from freeloop.tree import Snapshot, Tree, functions
from freeloop.tree.model import Holder
from freeloop.tree.waits import describe_wait
from freeloop.watch.advice import advise
from serving import served

HERE = Path(freeloop.console.__file__).parent
TOKEN = "a-token-of-this-test"  # noqa: S105 - of this test


def read(language):
    parts = tomllib.loads((HERE / "catalogue" / f"{language}.toml").read_text("utf-8"))
    return {f"{part}.{key}": text for part, texts in parts.items() for key, text in texts.items()}


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


SAID_ELSEWHERE = {
    f"{part}.{key}": text for part, templates in ENGLISH.items() for key, text in templates.items()
}


def test_the_catalogues_have_the_same_keys_and_values():
    english, chinese = {**read("en"), **SAID_ELSEWHERE}, read("zh-TW")
    assert english.keys() == chinese.keys()
    assert not read("en").keys() & SAID_ELSEWHERE.keys()
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


# What stands in a field of a template, and what becomes of it.
FILLED = {
    "wait": ("a timer", "計時器"),
    "name": ("'main' (3 of 3 lent)", "'main'（3 條借出 3 條）"),
    "thing": ("Queue 0x7f", "Queue 0x7f"),
    "place": ("shop.py:3 in build", "shop.py:3 in build"),
    "count": ("3", "3"),
    "size": ("inf", "inf"),
    "lasted": ("3 min 20 s", "3 min 20 s"),
}


@pytest.mark.parametrize(
    "key", [key for key, text in SAID_ELSEWHERE.items() if not re.fullmatch(r"{\w+}", text)]
)
def test_every_sentence_of_another_room_is_said_in_chinese(key):
    part = key.partition(".")[0]
    english, chinese = load_texts("en"), load_texts("zh-TW")
    given = {name: FILLED.get(name, ("Task-1", "Task-1")) for name in fields(SAID_ELSEWHERE[key])}
    text = SAID_ELSEWHERE[key].format(**{name: before for name, (before, _) in given.items()})
    said = read("zh-TW")[key].format(**{name: after for name, (_, after) in given.items()})
    part = "waits" if part == "clauses" else part
    assert said != text
    assert chinese.say(part, text).replace(" ", "") == said.replace(" ", "")
    assert english.say(part, text) == text


def test_whatever_a_look_names_is_said_in_chinese():
    """What :mod:`freeloop.tree.functions` puts into a name stands in a template, word by word."""
    tree = ast.parse(inspect.getsource(functions))
    joined = [each for each in ast.walk(tree) if isinstance(each, ast.JoinedStr)]
    pieces = [
        part.value
        for each in joined
        for part in each.values
        if isinstance(part, ast.Constant) and " " in part.value
    ]
    words = {word for piece in pieces for word in re.findall(r"[a-z]{2,}", piece)}
    assert {"of", "in", "it", "lent", "busy", "borrowed", "descriptor"} <= words
    known = {word for text in ENGLISH["things"].values() for word in re.findall(r"[a-z]{2,}", text)}
    assert words <= known | {"stream"}  # which is its name


EXPORTS = [
    Holder(1, "/export (Task-2)", "a.py:6 in export", 12.0),
    Holder(2, "Task-9"),
    Holder(None, "", "", 0.2),
]


@pytest.mark.parametrize(
    ("wait", "said"),
    [
        (
            {"kind": "connection", "name": "'main' (3 of 3 lent)", "holders": EXPORTS, "more": 4},
            (
                "連線池 'main'（3 條借出 3 條）的連線，占用者：/export (Task-2) 已 12.0 s"
                "（位於 a.py:6 in export）、Task-9、不明的占用者已 0.20 s，以及另外 4 個"
            ),
        ),
        (
            {"kind": "tasks", "tasks": ["a", "b", "c", "d"], "needs": "any"},
            "a、b、c，以及另外 1 個之中最先完成的一個",
        ),
        ({"kind": "tasks", "tasks": ["a", "b"]}, "a 和 b 全部完成"),
        # Of one task that stands for several, as shield(gather(a, b)).
        ({"kind": "task", "tasks": ["a", "b"]}, "a 和 b"),
        ({"kind": "task", "tasks": ["a", "b", "c", "d"]}, "a、b、c，以及另外 1 個"),
        ({"kind": "task"}, "不明的東西"),
        # What an app says keeps its gaps.
        ({"kind": "task", "tasks": ["結帳 工作"]}, "結帳 工作"),
        ({"kind": "tasks", "tasks": ["結帳 工作", "b"]}, "結帳 工作和 b 全部完成"),
        ({"kind": "tasks", "tasks": ["a", "付款"]}, "a 和付款全部完成"),
        ({"kind": "statement", "name": "select 結帳 工作"}, "PostgreSQL：select 結帳 工作"),
        (
            {"kind": "connection", "name": "'結帳 工作' (3 of 3 lent)", "holders": [Holder(1, "送 貨")]},
            "連線池 '結帳 工作'（3 條借出 3 條）的連線，占用者：送 貨",
        ),
        (
            {"kind": "thread", "name": "f", "holders": [Holder(None, "t", "x.py:1 in f")]},
            "執行緒（執行 f），目前位於 x.py:1 in f",
        ),
        ({"kind": "semaphore", "name": "Semaphore 0x7f of 3"}, "Semaphore 0x7f（共 3 個）的許可"),
        (
            {"kind": "queue-put", "name": "stream 0x1 (1 of inf in it)"},
            "stream 0x1（容量 inf，內有 1 個）騰出空位",
        ),
        ({"kind": "shared", "name": "GET https://x/a"}, "GET https://x/a 的回應（別人也在等同一個）"),
        # Neither a statement nor a name is taken for words of ours.
        (
            {"kind": "statement", "name": "select a and b, c of 3 to be set"},
            "PostgreSQL：select a and b, c of 3 to be set",
        ),
        ({"kind": "lock", "name": "Lock 0x1"}, "Lock 0x1"),
        *(({"kind": "task", "tasks": [name]}, name) for name in ("a, " * 1000, "a and " * 1000)),
    ],
)
def test_waits_in_chinese(wait, said):
    wait = {"name": "", "needs": "all", "tasks": [], "holders": [], **wait}
    text = describe_wait(wait.pop("kind"), wait.pop("name"), **wait)
    assert load_texts("zh-TW").say("waits", text) == said


def test_what_nobody_has_translated_stays_as_it_is():
    chinese = load_texts("zh-TW")
    assert chinese.say("advice", "Do as another version says.") == "Do as another version says."
    assert chinese.say("advice", advise("waiting", (), ("time.sleep",))) == read("zh-TW")["advice.sleep"]


def test_values_are_said_as_people_do():
    texts = Texts("en", {"a.b": "{count} in {seconds} by {process}"})
    assert texts("a.b", count=12345, seconds=0.25, process=12345) == "12,345 in 0.25 s by 12345"
    assert load_texts("zh-TW")("nav.now") == "現況"


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
    def look(_, **options):
        raise KeyError("_fut_waiter")

    async with served(app_with_console, lifespan="on") as (client, _):
        monkeypatch.setattr("freeloop.tree.look.Tree.look", look)
        async with client.get("/ops/now") as answer:
            assert answer.status == 200
            assert "KeyError" in await answer.text()
    (record,) = [record for record in caplog.records if "could not be read" in record.message]
    assert record.exc_info[0] is KeyError


DOCS = Path(__file__).parents[2] / "docs"


def test_every_picture_of_the_console_is_on_its_page():
    pictures = {path.name for path in (DOCS / "images").glob("console-*.png")}
    assert len(pictures) >= 7
    assert set(re.findall(r"\(images/(console-[\w-]+\.png)\)", (DOCS / "console.md").read_text())) == pictures


def list_actions():
    """Return the path of each action of the console, from its routes."""
    routes = Console(None, title="", token=None)._app.routes
    paths = [route.path for route in routes if "POST" in route.methods]
    return [
        path.replace("{id:uuid}", str(uuid4())).replace("{action}", action)
        for path in paths
        for action in (("cancel", "retry", "run") if "{action}" in path else ("",))
    ]


def test_there_are_actions():
    assert len(list_actions()) == 7
    assert {path.rpartition("/")[2] for path in list_actions()} == {
        *("login", "logout", "language", "cancel", "retry", "run")
    }


@pytest.mark.parametrize("action", range(7))
async def test_each_action_is_taken_from_a_page_of_our_own_only(app_with_console, action):
    async with served(app_with_console, lifespan="on") as (client, server):
        port = server.servers[0].sockets[0].getsockname()[1]
        path, own = f"/ops{list_actions()[action]}", f"http://127.0.0.1:{port}"
        for origin in (None, "null", "http://127.0.0.1", "http://evil.example"):
            headers = {} if origin is None else {"Origin": origin}
            async with client.post(path, headers=headers, allow_redirects=False) as answer:
                assert answer.status == 403, origin
                assert "did not come from a page of the console" in await answer.text()
        async with client.post(path, headers={"Origin": own}, allow_redirects=False) as answer:
            assert answer.status in {200, 303, 404, 422}  # it was looked at; there is no such task


class Looks:
    """Makes looks, of which each takes so long by a clock of its own; counts them."""

    def __init__(self):
        self.now = 100.0
        self.made = 0
        self.takes = 0.01
        self.hung = False
        self.fails = False
        self.shared = SharedLook(self._look, clock=lambda: self.now)

    def _look(self):
        self.made += 1
        self.now += self.takes
        if self.fails:
            raise InspectionFailed("KeyError: it is not there")
        return Snapshot(pid=1, loop="", hung=self.hung)


@pytest.mark.parametrize(
    ("takes", "hung", "good_for"),
    [(0.0, False, SHORTEST), (0.01, False, SHORTEST), (0.3, False, REST * 0.3), (PATIENCE, True, SHORTEST)],
)
def test_a_look_serves_all_who_ask_for_as_long_as_it_may_cost(takes, hung, good_for):
    looks = Looks()
    looks.takes, looks.hung = takes, hung
    assert looks.shared.fresh is None
    first = looks.shared.get()
    looks.now += good_for - 0.01
    assert looks.shared.get() is looks.shared.fresh is first
    looks.now += 0.02
    assert looks.shared.fresh is None
    assert looks.shared.get() is not first
    assert looks.made == 2


def test_looking_takes_a_twentieth_of_a_core_at_most_however_often_it_is_asked():
    looks = Looks()
    looks.takes = 0.3
    began = looks.now
    while looks.now < began + 1000:
        looks.shared.get()
        looks.now += 0.05
    assert looks.made * looks.takes <= 0.05 * (looks.now - began) + looks.takes
    assert looks.made * looks.takes >= 0.04 * (looks.now - began)


def test_a_look_that_failed_is_not_tried_again_at_once():
    looks = Looks()
    looks.fails = True
    for _ in range(3):
        with pytest.raises(InspectionFailed, match="KeyError: it is not there"):
            looks.shared.get()
    assert looks.made == 1
    looks.fails = False
    looks.now += SHORTEST
    assert looks.shared.get().pid == 1


def test_one_look_is_made_at_a_time():
    begun, go_on, made = threading.Event(), threading.Event(), []

    def look():
        made.append(1)
        begun.set()
        assert go_on.wait(30)
        return Snapshot(pid=1, loop="")

    shared = SharedLook(look)
    found = []
    threads = [threading.Thread(target=lambda: found.append(shared.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len({id(each) for each in found}) == len(made) == 1
    assert len(found) == 8


async def test_twenty_viewers_of_different_things_cause_as_many_looks_as_one(app_with_console, monkeypatch):
    here, over, looks, answers = asyncio.Semaphore(0), asyncio.Event(), [], []

    @app_with_console.get("/held/{number}")
    async def hold(number: int):
        here.release()
        await over.wait()

    look, answer = Tree.look, Insights.answer
    monkeypatch.setattr(Tree, "look", lambda self, **options: looks.append(1) or look(self, **options))
    monkeypatch.setattr(Insights, "answer", lambda self, of: answers.append(of) or answer(self, of))
    async with served(app_with_console, lifespan="on") as (client, _):
        held = [asyncio.create_task(client.get(f"/held/{number}")) for number in range(20)]
        for _ in held:
            await here.acquire()
        async with client.get("/ops/requests.json") as told:
            numbers = [each["number"] for each in (await told.json())["live"]]
        assert len(numbers) == 20
        began = time.monotonic()
        looks.clear()
        answers.clear()

        async def view(path):
            async with client.get(f"/ops/{path}") as told:
                assert told.status == 200
                return await told.json()

        seen = await asyncio.gather(
            *(view(f"requests.json?open={number}&q=/held&sort=route") for number in numbers),
            *(view(f"tree.json?q={word}") for word in map("held{}".format, range(20))),
        )
        # One viewer who comes back at once each time causes as many in that time.
        seconds = time.monotonic() - began
        assert len(looks) <= 1 + seconds / SHORTEST
        assert len(answers) <= 1 + seconds / 0.4
        assert {each["open"]["number"] for each in seen[:20]} == {*numbers}
        assert all("hold" in str(each["tree"]["rows"]) for each in seen[:20])
        over.set()
        for each in held:
            (await each).close()
