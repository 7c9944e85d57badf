"""Redirects are followed as the Fetch standard says, and credentials stay where they belong."""

from itertools import pairwise
from urllib.parse import urlsplit

import pytest

from freeloop.errors import (
    RedirectRefused,
    UpstreamBodyInvalid,
    UpstreamStatus,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from freeloop.outbound import AiohttpTransport, Client, OutboundRequest, Response
from freeloop.outbound.redirects import RedirectPolicy, Redirects
from freeloop.testing import FaultyUpstream
from freeloop.testing.answers import render, say

SECRETS = {"Authorization": "Bearer s3cret", "Cookie": "a=b", "X-Api-Key": "s3cret", "Accept": "text/plain"}


def call(method="GET", url="https://a.example/x/y?q=1", **more):
    return OutboundRequest(method=method, url=url, timeout=5.0, max_body=1000, **more)


def answer(request, status, location):
    headers = {} if location is None else {"Location": location}
    return Response(status_code=status, headers=headers, content=b"", url=request.url, request=request)


def follow(request, status=302, location="/there", **policy):
    return RedirectPolicy(**policy).next_hop(request, answer(request, status, location))


@pytest.fixture
async def client():
    async with Client(Redirects(AiohttpTransport())) as client:
        yield client


@pytest.mark.parametrize(
    ("status", "location"), [(200, "/there"), (300, "/there"), (304, "/there"), (305, "/there"), (302, None)]
)
def test_what_is_no_redirect_is_an_answer(status, location):
    assert follow(call(), status, location) is None


@pytest.mark.parametrize(
    ("location", "there"),
    [
        ("/there", "https://a.example/there"),
        ("there?r=2", "https://a.example/x/there?r=2"),
        ("../up", "https://a.example/up"),
        ("?r=2", "https://a.example/x/y?r=2"),
        ("//b.example/z", "https://b.example/z"),
        ("https://b.example:444/z", "https://b.example:444/z"),
        ("/grün", "https://a.example/gr%C3%BCn"),
        ("", "https://a.example/x/y?q=1"),
    ],
)
def test_a_location_may_be_relative(location, there):
    assert follow(call(), location=location).url == there


@pytest.mark.parametrize(
    "location",
    [
        *(
            "ftp://a.example/",
            "http://",
            "https:///x",
            "javascript:alert(1)",
            "file:///etc/passwd",
            "http://[::",
        ),
        *("http://a:99999/", "data:,x", "http:x"),
    ],
)
def test_a_location_that_is_no_web_address(location):
    with pytest.raises(UpstreamBodyInvalid, match="not an http or https URL"):
        follow(call(), location=location)


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (303, "PUT", "GET"),
        (303, "DELETE", "GET"),
        (303, "HEAD", "HEAD"),
        (301, "PUT", "PUT"),
        (302, "DELETE", "DELETE"),
        (302, "HEAD", "HEAD"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
        (308, "PATCH", "PATCH"),
    ],
)
def test_the_method_and_the_body_change_together(status, method, then):
    request = call(method, content=b"{}", headers={"content-type": "application/json", "X-Kept": "1"})
    hop = follow(request, status)
    assert hop.method == then
    assert hop.content == (b"{}" if then == method else None)
    assert hop.headers["X-Kept"] == "1"
    assert ("content-type" in hop.headers) == (then == method)


def test_credentials_stay_on_their_origin():
    request = call(headers=SECRETS, source="posts", url="https://user:pass@a.example/x")
    for location in ("/there", "https://a.example/there", "https://a.example:443/there"):
        hop = follow(request, location=location)
        assert hop.headers == SECRETS
        assert urlsplit(hop.url).username == "user"
        assert hop.source == "posts"


@pytest.mark.parametrize(
    "location",
    [
        "https://b.example/",
        "https://a.example:444/",
        "//b.example/",
        "https://x:y@b.example/",
        "https://a.example.b",
    ],
)
def test_no_credentials_for_another_origin(location):
    hop = follow(
        call(headers=SECRETS, source="posts", url="https://user:pass@a.example/x"), location=location
    )
    assert hop.headers == {"Accept": "text/plain"}
    assert "@" not in hop.url
    assert hop.source is None


def test_no_downgrade_unless_allowed():
    with pytest.raises(RedirectRefused, match="from https to http"):
        follow(call(), location="http://a.example/")
    assert follow(call(), location="http://a.example/", allow_downgrade=True).url == "http://a.example/"
    assert follow(call(url="http://a.example/"), location="https://a.example/").url == "https://a.example/"


def test_a_limit_is_a_limit():
    with pytest.raises(ValueError, match="0 or more"):
        RedirectPolicy(limit=-1)


async def test_redirects_are_followed_as_often_as_allowed(upstream):
    async with Client(Redirects(AiohttpTransport(), policy=RedirectPolicy(limit=2))) as client:
        response = await client.get(upstream.url + "/redirect-on/2")
        assert (response.status_code, response.url) == (200, upstream.url + "/redirect-on/0")
        assert response.request.url == upstream.url + "/redirect-on/2"
        assert upstream.accepted == 1
        with pytest.raises(
            UpstreamStatus, match="redirected more than 2 times; the last status was 302"
        ) as caught:
            await client.get(upstream.url + "/redirect-on/3", source="posts")
    assert (caught.value.upstream_status, caught.value.source) == (302, "posts")


async def test_none_are_followed_where_none_are_allowed(upstream):
    async with Client(Redirects(AiohttpTransport(), policy=RedirectPolicy(limit=0))) as client:
        with pytest.raises(UpstreamStatus, match="more than 0 times"):
            await client.get(upstream.url + "/redirect-on/1")
    assert upstream.calls.total() == 1


async def test_a_circle_is_seen_at_once(client, upstream):
    with pytest.raises(UpstreamStatus, match="redirected in a circle; the last status was 307"):
        await client.get(upstream.url + "/redirect-in-circles")
    assert upstream.calls == {"/redirect-in-circles": 2}


async def test_a_form_that_leads_to_its_own_page_is_no_circle(client, upstream):
    upstream.script("/form", say(render(b"", status="303 See Other", headers="Location: /form\r\n")), "ok")
    assert (await client.post(upstream.url + "/form", json=1)).status_code == 200
    assert [request.method for request in upstream.requests] == ["POST", "GET"]


async def test_the_other_origin_sees_no_secret(client, upstream):
    async with FaultyUpstream() as other:
        away = render(b"", status="307 Temporary Redirect", headers=f"Location: {other.url}/ok\r\n")
        upstream.script("/away", say(away))
        await client.request("PUT", upstream.url + "/away", content=b"body", headers=SECRETS)
        (seen,) = other.requests
    assert seen.content == b"body"
    assert b"s3cret" not in seen.head
    assert b"s3cret" in upstream.requests[0].head


async def test_what_leaves_the_origin_is_carried_by_another_for_good(upstream):
    class Named(AiohttpTransport):
        def __init__(self):
            super().__init__()
            self.urls = []

        async def send(self, request):
            self.urls.append(request.url)
            return await super().send(request)

    own, elsewhere = Named(), Named()
    client = Client(Redirects(own, elsewhere=elsewhere))
    async with FaultyUpstream() as other, client:
        places = ["/b", f"{other.url}/c", f"{other.url}/d", f"{upstream.url}/e"]
        for here, there in pairwise(["/a", *places]):
            away = say(render(b"", status="302 Found", headers=f"Location: {there}\r\n"))
            (other if here.startswith(other.url) else upstream).script(urlsplit(here).path, away)
        assert (await client.get(f"{upstream.url}/a")).url == f"{upstream.url}/e"
        await elsewhere.close()
    assert [urlsplit(url).path for url in own.urls] == ["/a", "/b"]
    assert elsewhere.urls == places[1:]


async def test_the_time_is_for_all_hops_together(client, upstream):
    upstream.script("/away", say(render(b"", status="302 Found", headers="Location: /hang\r\n")))
    with pytest.raises(UpstreamTimeout):
        await client.get(upstream.url + "/away", timeout=0.2)
    assert upstream.calls["/hang"] == 1


async def test_a_hop_that_fails_is_the_sources_failure(client, upstream):
    away = render(b"", status="302 Found", headers=f"Location: {upstream.refusing_url}/\r\n")
    upstream.script("/away", say(away))
    with pytest.raises(UpstreamUnreachable) as caught:
        await client.get(upstream.url + "/away", source="posts")
    assert caught.value.source == "posts"
