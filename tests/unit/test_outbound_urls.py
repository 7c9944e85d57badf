"""URLs go out as they are given, and everybody reads them in the same way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloop.outbound import AiohttpTransport, Client, Redirects
from freeloop.outbound.urls import parse_url, resolve_url
from freeloop.testing import FaultyUpstream
from freeloop.testing.answers import render, say

# A signature stands for each of these bytes.
SIGNED = "/bucket/a%20b//c%2Fd%7e/../e;f=1?X-Sig=a%2Bb%20c+d%3D&empty=&s=%c3%a9~%7E&t=a,b:c@d/e?f!$'()*"


@pytest.mark.parametrize(
    ("url", "there"),
    [
        ("http://h", "http://h/"),
        ("HTTP://H?a", "http://h/?a"),
        ("http://h/a#b?c", "http://h/a"),
        ("http://h:80/", "http://h/"),
        ("http://h:8080/", "http://h:8080/"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ("http://Bücher.example/grün?ö", "http://xn--bcher-kva.example/gr%C3%BCn?%C3%B6"),
        ("http://u%40x:p%3A@h/", "http://u%40x:p%3A@h/"),
        ('http://h/a b|[]^`{}<>"\\?c d', "http://h/a%20b%7C%5B%5D%5E%60%7B%7D%3C%3E%22%5C?c%20d"),
        ("http://h/100%/%zz%2?%", "http://h/100%25/%25zz%252?%25"),
        (f"http://h{SIGNED}", f"http://h{SIGNED}"),
    ],
)
def test_only_what_no_url_may_hold_is_encoded(url, there):
    assert str(parse_url(url)) == there


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "/x", "//h/x", "http:x", "http://", "http:///x", "http://?x", "http://@/", "http://:80/"),
        *(
            "ftp://h/",
            "file:///etc/passwd",
            "javascript://h/",
            "http://[::1",
            "http://h:99999/",
            "http://h:x/",
        ),
        *("http://h\\@evil/", "http://h evil/", "http://h/\ud800", "http://\ud800/", "http://h\u2028/"),
        *("http://h/a\nb", "http://h\r\n/", "http://h/\t", "http://h/a\x00", " http://h/", "http://h/ "),
    ],
)
def test_what_is_no_web_address(url):
    with pytest.raises(ValueError, match="expected an absolute http or https URL") as caught:
        parse_url(url)
    assert caught.value.args[0].endswith("without control characters")  # and nothing of the URL itself


@pytest.mark.parametrize(
    ("reference", "there"),
    [
        ("/x?y=%20%7e", "http://h/x?y=%20%7e"),
        ("?r", "http://h/a/b?r"),
        ("../é x", "http://h/%C3%A9%20x"),
        ("//[::1]:8/x", "http://[::1]:8/x"),
        ("//bücher.example", "http://xn--bcher-kva.example/"),
        ("/\\evil/", "http://h/%5Cevil/"),
        ("#f", "http://h/a/b?c"),
    ],
)
def test_where_a_reference_leads(reference, there):
    assert str(resolve_url("http://h/a/b?c", reference)) == there


@pytest.mark.parametrize(
    "reference", ["https:///x", "mailto:x", "/a\nb", "http:\\\\evil/", "//h evil/", "//h\\"]
)
def test_a_reference_that_leads_nowhere(reference):
    with pytest.raises(ValueError, match="URL"):
        resolve_url("http://h/a/b?c", reference)


@given(st.text(st.sampled_from("aZ09-._~!$&'()*+,;=:@/?")), st.integers(0, 255))
def test_what_is_encoded_already_stays_as_it_is(text, byte):
    for octet in (f"%{byte:02x}", f"%{byte:02X}"):
        assert parse_url(f"http://h/{text}{octet}{text}").raw_path_qs.rstrip(
            "?"
        ) == f"/{text}{octet}{text}".rstrip("?")


@given(st.text(max_size=50))
def test_what_goes_out_is_a_request_line_whatever_comes_in(text):
    try:
        url = parse_url(f"http://h/{text}")
    except ValueError:
        return
    assert url.host == "h"
    assert url.raw_path_qs.isascii()
    assert all(character > " " and character != "#" for character in url.raw_path_qs)
    assert parse_url(str(url)) == url


async def test_a_signed_url_on_the_wire():
    async with FaultyUpstream() as upstream, Client(Redirects(AiohttpTransport())) as client:
        response = await client.get(upstream.url + SIGNED)
        assert upstream.requests[-1].target == SIGNED
        assert response.url == upstream.url + SIGNED
        await client.get(f"{upstream.url}/x?a=%20b", params={"c": "d e/é"})
        assert upstream.requests[-1].target == "/x?a=%20b&c=d+e%2F%C3%A9"
        away = f"Location: {upstream.url}{SIGNED}\r\n"
        upstream.script("/away", say(render(b"", status="302 Found", headers=away)))
        await client.get(f"{upstream.url}/away")
        assert upstream.requests[-1].target == SIGNED
