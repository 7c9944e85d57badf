"""What the arguments of a call become on the wire."""

import re

import pytest

from freeloop.outbound import AiohttpTransport, Client, Source
from freeloop.outbound.encoding import add_params, locate
from freeloop.scope import Scope, read_trace
from freeloop.testing.answers import BODY

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
async def client(upstream):
    sources = {"posts": Source(f"{upstream.url}/v1?key=1"), "silent": Source()}
    async with Client(AiohttpTransport(), sources=sources) as client:
        yield client


def headers_of(exchange):
    lines = exchange.head.decode().split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


@pytest.mark.parametrize("method", ["get", "head", "post", "put", "patch", "delete"])
async def test_each_method_has_its_name(client, upstream, method):
    response = await getattr(client, method)(f"{upstream.url}/ok")
    assert (response.status_code, upstream.requests[-1].method) == (200, method.upper())


async def test_parameters_json_and_forms(client, upstream):
    url = f"{upstream.url}/x?a=1#part"
    await client.get(url, params={"b": "ä&=", "c": [1, 2], "d": None, "e": True})
    assert upstream.requests[-1].target == "/x?a=1&b=%C3%A4%26%3D&c=1&c=2&d=&e=true"
    await client.put(url, json={"a": 1})
    assert upstream.requests[-1].content == b'{"a":1}'
    assert headers_of(upstream.requests[-1])["content-type"] == "application/json"
    await client.post(url, data={"a": "b c", "d": ["1", "2"]})
    assert upstream.requests[-1].content == b"a=b+c&d=1&d=2"
    assert headers_of(upstream.requests[-1])["content-type"] == "application/x-www-form-urlencoded"
    await client.post(url, data={"a": 1}, headers={"content-type": "text/x"})
    assert headers_of(upstream.requests[-1])["content-type"] == "text/x"


@pytest.mark.parametrize(
    "bodies", [{"json": 1, "data": {}}, {"json": 1, "content": b""}, {"data": {}, "content": b""}]
)
async def test_a_call_has_one_body(client, bodies):
    with pytest.raises(ValueError, match="expected one of content, json and data"):
        await client.post("http://127.0.0.1/", **bodies)


async def test_a_path_is_one_of_its_source(client, upstream):
    for url, target in {
        "": "/v1?key=1",
        "/2": "/v1/2?key=1",
        "/2?a=b": "/v1/2?key=1&a=b",
        "?a=b": "/v1?key=1&a=b",
        f"{upstream.url}/x": "/x",
    }.items():
        await client.get(url, source="posts")
        assert upstream.requests[-1].target == target
    await client.get("/2", source="posts", params={"a": 1})
    assert upstream.requests[-1].target == "/v1/2?key=1&a=1"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("posts/2", {"source": "posts"}),
        ("/2", {"source": "silent"}),
        ("/2", {}),
        ("@evil.example", {"source": "posts"}),
    ],
)
async def test_what_leads_nowhere_is_refused(client, upstream, url, options):
    with pytest.raises(ValueError, match="expected an absolute"):
        await client.get(url, **options)
    assert upstream.accepted == 0


@pytest.mark.parametrize(
    "path", ["/...", "//evil.example", "/@evil.example", "/\\evil.example", "?@evil.example"]
)
@pytest.mark.parametrize("base", ["http://a.example", "http://a.example/", "http://a.example/v1"])
def test_a_path_never_leads_to_another_host(base, path):
    assert re.match(r"http://a\.example[/?]", locate(path, base))


@pytest.mark.parametrize("path", ["/..", "/../admin", "/a/%2E%2e/b", "/.%2e", "/./x", "/a/..?b"])
def test_a_path_never_leads_out_of_its_source(path):
    with pytest.raises(ValueError, match=r"without the segments \. and \.\."):
        locate(path, "http://a.example/v1")
    assert locate("/a..b/.c/d.?e=/../", "http://a.example/v1") == "http://a.example/v1/a..b/.c/d.?e=/../"


async def parts():
    yield b"0123456789"


@pytest.mark.parametrize("method", ["", "GET ", "GET / HTTP/1.1\r\nX: y", "G\0", "É", "CONNECT", "connect"])
async def test_a_method_is_one(client, upstream, method):
    with pytest.raises(ValueError, match="expected a method"):
        await client.request(method, f"{upstream.url}/x")
    assert upstream.accepted == 0


@pytest.mark.parametrize("name", ["", "X: y", "X ", " X", "X\r\nY", "X\0", "Schlüssel"])
async def test_a_headers_name_is_one(client, upstream, name):
    with pytest.raises(ValueError, match="expected a header's name"):
        await client.get(f"{upstream.url}/x", headers={name: "z"})
    assert upstream.accepted == 0


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y", "a\r", "a\0"])
async def test_a_headers_value_stays_in_its_line(client, upstream, value):
    with pytest.raises(ValueError, match="control character"):
        await client.get(f"{upstream.url}/x", headers={"X": value})
    assert upstream.calls.total() == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"headers": {"Content-Length": "5"}}, "expected a body of 5 bytes, .* got 0"),
        (
            {"headers": {"content-length": "3"}, "content": b"0123456789"},
            "expected a body of 3 bytes, .* got 10",
        ),
        ({"headers": {"Content-Length": "30"}, "json": 1}, "expected a body of 30 bytes, .* got 1"),
        ({"headers": {"Content-Length": "-1"}, "content": b"0"}, "in digits"),
        ({"headers": {"Content-Length": "1_0"}, "content": parts()}, "in digits"),
        ({"headers": {"Transfer-Encoding": "chunked"}, "content": b"0"}, "expected no Transfer-Encoding"),
        ({"headers": {"transfer-encoding": "x"}, "content": parts()}, "expected no Transfer-Encoding"),
    ],
)
async def test_a_header_does_not_contradict_the_body(client, upstream, options, text):
    """Else the upstream takes the end of one request for the beginning of the next."""
    with pytest.raises(ValueError, match=text):
        await client.post(f"{upstream.url}/x", **options)
    assert upstream.accepted == 0
    response = await client.post(f"{upstream.url}/x", headers={"Content-Length": "2"}, content=b"ab")
    assert (response.content, upstream.requests[-1].content) == (BODY, b"ab")


def test_parameters_are_added_to_any_query():
    assert add_params("http://a/", {}) == "http://a/"
    assert add_params("http://a/?", {"b": 1}) == "http://a/?b=1"
    assert add_params("http://a/?c&", {"b": 1}) == "http://a/?c&b=1"
    assert add_params("http://a/#x?y", {"b": 1}) == "http://a/?b=1#x?y"


class TestTheTrace:
    async def sent(self, client, upstream, scope=None, **headers):
        if scope is not None:
            scope.enter()
        await client.get(f"{upstream.url}/ok", headers=headers)
        return headers_of(upstream.requests[-1])

    async def test_is_that_of_the_caller(self, client, upstream):
        scope = Scope("r")
        scope.trace = read_trace(f"00-{TRACE}-00f067aa0ba902b7-01".encode(), b"a=1,b=2")
        one, other = [await self.sent(client, upstream, scope) for _ in range(2)]
        assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-01", one["traceparent"])
        assert "00f067aa0ba902b7" not in one["traceparent"]
        assert one["tracestate"] == "a=1,b=2"
        assert one["traceparent"] != other["traceparent"]  # each call is a child of its own

    async def test_is_the_id_in_the_logs_where_the_caller_names_none(self, client, upstream):
        sent = await self.sent(client, upstream, Scope(TRACE))
        assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-00", sent["traceparent"])
        assert "tracestate" not in sent

    async def test_is_one_for_all_calls_of_a_scope_whatever_its_id(self, client, upstream):
        ids = {(await self.sent(client, upstream, Scope("order-7")))["traceparent"][3:35] for _ in range(3)}
        assert len(ids) == 1
        assert ids != {(await self.sent(client, upstream, Scope("order-8")))["traceparent"][3:35]}

    async def test_is_left_alone_where_the_call_has_one(self, client, upstream):
        sent = await self.sent(client, upstream, Scope(TRACE), TraceParent="mine")
        assert sent["traceparent"] == "mine"

    async def test_is_none_outside_of_a_scope(self, client, upstream):
        assert "traceparent" not in await self.sent(client, upstream)


@pytest.mark.parametrize("state", [b"", b"a\nb", b"x" * 513, "ä".encode(), None])
def test_a_state_that_is_not_valid_is_left_out(state):
    trace = read_trace(f"00-{TRACE}-00f067aa0ba902b7-00".encode(), state)
    assert (trace.id, trace.flags, trace.state) == (TRACE, "00", "")
    assert read_trace(b"00-x", state) is None
