"""The table of routes comes to the route that the app itself comes to, whatever the routes are."""

import asyncio
import functools
import string

import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import event, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute

from freeloop import deadline, finish, priority
from freeloop.gate.bulkheads import Bulkheads
from freeloop.gate.declare import read_declaration
from freeloop.gate.routes import WEBSOCKET, RouteTable
from freeloop.testing import eventually
from serving import connected, gated, kitted, request_of, served, soon

METHODS = ("GET", "POST", "DELETE")
WORDS = ("a", "b", "1", "1.5", "a.b", "(", "é")
CONVERTERS = ("", ":int", ":float", ":path", ":str")


@st.composite
def templates(draw, *, least=0):
    """A path such as ``/a/{x:int}/pre-{y}``, sometimes with a slash at its end."""
    names = iter(string.ascii_letters)
    parts = []
    for _ in range(draw(st.integers(least, 3))):
        if draw(st.booleans()):
            parts.append(draw(st.sampled_from(WORDS)))
        else:
            prefix = draw(st.sampled_from(("", "", "a", "a-")))
            suffix = draw(st.sampled_from(("", "", ".b")))
            parts.append(f"{prefix}{{{next(names)}{draw(st.sampled_from(CONVERTERS))}}}{suffix}")
    return "/" + "/".join(parts) + draw(st.sampled_from(("", "", "/")) if parts else st.just(""))


@st.composite
def paths(draw, known):
    """A path made of the same words, or one that fits a template that is known."""
    if known and draw(st.booleans()):
        template = draw(st.sampled_from(known))
        out = ""
        while "{" in template:
            before, _, rest = template.partition("{")
            _, _, template = rest.partition("}")
            out += before + draw(st.sampled_from((*WORDS, "a/b", "")))
        return out + template
    return "/" + "/".join(draw(st.lists(st.sampled_from((*WORDS, "")), max_size=5)))


def endpoint_for(found, number):
    async def endpoint():
        found.append(number)
        return number

    # Every route declares something of its own, so that the table makes one entry for each.
    return deadline(number + 1)(endpoint)


def starlette_endpoint_for(found, number):
    async def endpoint(request):
        found.append(number)
        return PlainTextResponse(str(number))

    return deadline(number + 1)(endpoint)


def socket_endpoint_for(found, number):
    async def endpoint(websocket):
        found.append(number)
        await websocket.close()

    return deadline(number + 1)(endpoint)


@st.composite
def apps(draw, found):  # noqa: PLR0915 - one draw for each kind of route
    """A FastAPI or Starlette app with routes of all kinds; and its templates, as they are mounted."""
    numbers = iter(range(10_000))
    known = []

    def fill_fastapi(router, prefix, depth):
        # A mount of everything: FastAPI allows it in an app, and not in a router that is included.
        roots = ("",) if isinstance(router, FastAPI) else ()
        for _ in range(draw(st.integers(1, 4))):
            kind = draw(
                st.sampled_from(("route", "route", "route", "socket", "include", "mount", "starlette"))
            )
            if kind in {"include", "mount"} and not depth:
                kind = "route"
            if kind in {"route", "socket", "starlette"}:
                template = draw(templates())
                known.append(prefix + template)
                if kind == "socket":
                    router.add_api_websocket_route(template, socket_endpoint_for(found, next(numbers)))
                elif kind == "starlette":
                    methods = draw(st.sampled_from((["GET"], ["POST", "DELETE"])))
                    endpoint = starlette_endpoint_for(found, next(numbers))
                    (router.router if isinstance(router, FastAPI) else router).add_route(
                        template, endpoint, methods=methods
                    )
                else:
                    methods = draw(st.lists(st.sampled_from(METHODS), min_size=1, max_size=2, unique=True))
                    router.add_api_route(template, endpoint_for(found, next(numbers)), methods=methods)
            elif kind == "include":
                inner = APIRouter(prefix=draw(st.sampled_from(("", "/a", f"/{{include{next(numbers)}}}"))))
                fill_fastapi(inner, prefix + inner.prefix, depth - 1)
                outer = draw(st.sampled_from(("", "/b", "/1")))
                router.include_router(inner, prefix=outer)
                known.append(prefix + outer + "/a")
            else:
                at = draw(st.sampled_from(("/a", "/b", f"/m/{{mount{next(numbers)}}}", *roots)))
                inner = draw(st.sampled_from((FastAPI, Starlette)))
                if inner is FastAPI:
                    app = FastAPI(openapi_url=None)
                    fill_fastapi(app, prefix + at, depth - 1)
                else:
                    app = Starlette(routes=starlette_routes(prefix + at, depth - 1))
                router.mount(at, app)

    def starlette_routes(prefix, depth):
        roots = ("",)
        routes = []
        for _ in range(draw(st.integers(1, 4))):
            kind = draw(
                st.sampled_from(("route", "route", "socket", "mount") if depth else ("route", "socket"))
            )
            template = draw(templates())
            if kind == "mount":
                at = draw(st.sampled_from(("/a", "/b", f"/m/{{mount{next(numbers)}}}", *roots)))
                routes.append(Mount(at, routes=starlette_routes(prefix + at, depth - 1)))
                continue
            known.append(prefix + template)
            if kind == "socket":
                routes.append(WebSocketRoute(template, socket_endpoint_for(found, next(numbers))))
            else:
                methods = draw(st.sampled_from((["GET"], ["POST", "DELETE"], ["DELETE"])))
                routes.append(Route(template, starlette_endpoint_for(found, next(numbers)), methods=methods))
        return routes

    if draw(st.booleans()):
        app = FastAPI(openapi_url=None)
        fill_fastapi(app, "", 2)
    else:
        app = Starlette(routes=starlette_routes("", 2))
    return app, known


def call(app, method, path, root):
    """Let the app itself route; a WebSocket where the method is WEBSOCKET."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b""} if method != WEBSOCKET else {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    asgi = {
        "type": "websocket" if method == WEBSOCKET else "http",
        "method": method,
        "path": root + path,
        "raw_path": (root + path).encode(),
        "root_path": root,
        "query_string": b"",
        "headers": [],
        "scheme": "http",
        "server": ("test", 80),
    }
    if method == WEBSOCKET:
        del asgi["method"]

    async def run():
        await app(asgi, receive, send)

    asyncio.run(run())
    return sent


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_table_finds_the_route_that_the_app_picks(data):
    found = []
    app, known = data.draw(apps(found))
    table = RouteTable(app.routes, lambda template, declaration: declaration)
    for _ in range(5):
        method = data.draw(st.sampled_from((*METHODS, "HEAD", "PUT", WEBSOCKET)))
        path = data.draw(paths(known))
        root = data.draw(st.sampled_from(("", "/root")))
        found.clear()
        sent = call(app, method, path, root)
        declared = Bulkheads(app, max_concurrency=1).find(
            {"type": "http", "method": method, "path": root + path, "root_path": root}
        )
        mine = table.find(method, path)
        assert (declared.declaration == mine) or (mine is None and declared.template == "")
        if found:
            event("routed")
            assert mine is not None, f"{method} {path}: the app came to {found[0]}"
            assert mine.deadline == found[0] + 1, f"{method} {path}"
        elif sent and sent[0].get("status") == 405:
            event("405")
            assert mine is not None, f"{method} {path}: 405"
        else:
            event("none")


@settings(max_examples=100, deadline=None)
@given(
    routes=st.lists(
        st.tuples(
            st.lists(st.sampled_from(("a", "b", "{}", "{:path}", "a{}")), min_size=1, max_size=3),
            st.sampled_from(METHODS[:2]),
        ),
        min_size=2,
        max_size=6,
    ),
    called=st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), min_size=3, max_size=6),
)
def test_the_order_decides_where_many_routes_take_a_path(routes, called):
    found = []
    app = FastAPI(openapi_url=None)
    for number, (parts, method) in enumerate(routes):
        named = (part.replace("{", f"{{p{at}") for at, part in enumerate(parts))
        app.add_api_route("/" + "/".join(named), endpoint_for(found, number), methods=[method])
    table = RouteTable(app.routes, lambda template, declaration: declaration)
    for parts in called:
        path = "/" + "/".join(parts)
        for method in METHODS:
            found.clear()
            sent = call(app, method, path, "")
            mine = table.find(method, path)
            if found:
                assert mine is not None
                assert mine.deadline == found[0] + 1, f"{method} {path}"
            else:
                assert (mine is not None) == (sent[0]["status"] == 405)


def test_converters_paths_and_conflicts_one_by_one():
    app = FastAPI(openapi_url=None)

    def add(template, *methods):
        async def endpoint(): ...

        app.add_api_route(template, endpoint, methods=list(methods) or ["GET"])

    add("/items/latest")
    add("/items/{number:int}")
    add("/items/{name}")
    add("/items/{name}", "POST")
    add("/files/{rest:path}")
    add("/files/fixed")
    add("/x/{a}/y/{b}")
    add("/")
    table = RouteTable(app.routes, lambda template, _: template)
    for method, path, expected in (
        ("GET", "/items/latest", "/items/latest"),
        ("GET", "/items/7", "/items/{number:int}"),
        ("GET", "/items/x", "/items/{name}"),
        ("POST", "/items/7", "/items/{name}"),
        ("POST", "/items/latest", "/items/{name}"),
        ("GET", "/files/a/b/c", "/files/{rest:path}"),
        ("GET", "/files/fixed", "/files/{rest:path}"),
        ("GET", "/x/1/y/2", "/x/{a}/y/{b}"),
        ("GET", "/", "/"),
        ("DELETE", "/items/latest", "/items/latest"),
        ("DELETE", "/items/x", "/items/{name}"),
        ("GET", "/nowhere", None),
        ("GET", "/items/", None),
        ("GET", "/items/a/b", None),
        ("GET", "", None),
    ):
        assert table.find(method, path) == expected, (method, path)


async def test_the_record_names_the_template_also_behind_a_root_path_and_for_405():
    records, inner = [], FastAPI()

    @inner.get("/items/{item}")
    async def of_the_inner(item: str):
        return item

    app = FastAPI()
    app.mount("/sub", inner)

    @app.get("/items/{item}")
    async def item(item: str):
        return item

    gated(app, records=records)
    async with served(app, root_path="/api") as (session, server):
        for path, status in (
            ("/items/1", 200),
            ("/sub/items/2", 200),
            ("/nowhere", 404),
        ):
            async with session.get(path) as answer:
                assert answer.status == status, path
        async with session.delete("/items/1") as answer:
            assert answer.status == 405
        # uvicorn puts the root path before what comes; a proxy that strips nothing is its opposite.
        async with connected(server, request_of("/items/3")) as (reader, _):
            await soon(reader.readuntil(b"200 OK"))
        await eventually(lambda: len(records) == 5)
    assert [record.route for record in records] == [
        "/items/{item}",
        "/sub/items/{item}",
        "",
        "/items/{item}",
        "/items/{item}",
    ]


async def test_an_app_that_shows_no_routes_has_one_bulkhead_for_all():
    async def app(asgi, receive, send): ...

    bulkheads = Bulkheads(app, max_concurrency=1)
    assert bulkheads.find({"type": "http", "method": "GET", "path": "/x"}) is bulkheads.others
    assert len(list(bulkheads)) == 1


def test_declarations_are_read_through_partials_and_classes():
    @deadline(3)
    async def endpoint(): ...

    assert read_declaration(functools.partial(endpoint)).deadline == 3


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/metrics"])
def test_probes_are_never_queued(path):
    app = FastAPI(openapi_url=None)
    app.add_api_route(path, lambda: None)
    found = Bulkheads(app, max_concurrency=1).find({"type": "http", "method": "GET", "path": path})
    assert found.admission is None


async def test_methods_of_one_path_that_declare_different_things_are_told_apart_in_the_metrics():
    app, hold = FastAPI(), asyncio.Event()
    kit = kitted(app)

    @app.get("/orders")
    @priority("low")
    async def read():
        await hold.wait()

    @app.post("/orders")
    @deadline(5)
    @finish
    async def write():
        await hold.wait()

    @app.put("/orders")
    @deadline(None)
    async def replace(): ...

    def lines(name):
        return [line for line in kit.metrics.render().decode().splitlines() if line.startswith(name + "{")]

    async with served(app) as (session, _):
        clients = [
            asyncio.create_task(session.request(method, "/orders")) for method in ("GET", "GET", "POST")
        ]
        await eventually(lambda: kit.gate.running == 3)
        assert [line for line in lines("freeloop_route_running") if "/orders" in line] == [
            'freeloop_route_running{declares="priority=low",route="/orders"} 2.0',
            'freeloop_route_running{declares="deadline=5 finish=true",route="/orders"} 1.0',
            'freeloop_route_running{declares="deadline=none",route="/orders"} 0.0',
        ]
        assert 'freeloop_route_running{declares="",route="(none)"} 0.0' in lines("freeloop_route_running")
        hold.set()
        for client in clients:
            (await client).close()
