"""A URL that a user supplies leads to the public internet, in whatever spelling, or nowhere."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from aiohttp.resolver import ThreadedResolver
from hypothesis import given
from hypothesis import strategies as st

from freeloop.errors import RedirectRefused, UpstreamUnreachable, UrlRefused
from freeloop.outbound import AiohttpTransport, Client, aiohttp_connection
from freeloop.outbound.addresses import is_public
from freeloop.outbound.redirects import Redirects
from freeloop.outbound.url_policy import UrlGuard, UrlPolicy
from freeloop.testing import FaultyUpstream
from freeloop.testing.answers import render, say

INNER = [
    *("127.0.0.1", "127.255.0.1", "0.0.0.1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.1"),
    *(
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "192.88.99.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ),
    *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "100::1", "2001:db8::1"),
    *("::ffff:8.8.8.8", "::ffff:127.0.0.1", "::8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b:1::7f00:1"),
    *("2002:7f00:1::", "2002:808:808::", "2001::1", "2001:20::1", "3fff::1", "5f00::1", "4000::1"),
]
OUTER = [
    "8.8.8.8",
    "93.184.216.34",
    "172.32.0.1",
    "100.63.0.1",
    "2606:4700::1111",
    "2a00:1450::1",
    "2001:4860::1",
]


@pytest.mark.parametrize("address", INNER)
def test_an_address_that_is_not_public(address):
    assert not is_public(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    assert UrlPolicy().objection(f"http://{host}/") == "expected a host of the public internet"


@pytest.mark.parametrize("address", OUTER)
def test_an_address_that_is_public(address):
    assert is_public(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    assert UrlPolicy().objection(f"http://{host}/") is None


@given(st.ip_addresses())
def test_nothing_is_public_that_python_takes_for_reserved(address):
    inner = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    if inner or address.is_reserved or address.is_unspecified:
        assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://2130706433/", "http://017700000001/", "http://0x7f000001/", "http://127.1/", "http://0/"),
        *("http://0177.0.0.1/", "http://0x7f.0.0.1/", "http://127.0.0.0x1/", "http://127.0.0.01/"),
        *("http://127.0.0.1./", "http://localhost./", "http://localhost../", "http://8.8.8.8./"),
        *("http://[fe80::1%25eth0]/", "http://[2606:4700::1111%25eth0]/", "http://[2606:4700::1111%eth0]/"),
        *("http://example.com/\ud800", f"http://example.com/{'a' * 8000}"),
        *("http://127.0.0.1/", "http://127。0。0。1/", "http://①②⑦.⓪.⓪.①/", "http://ⓛocalhost/"),
        *(
            "http://[::1]/",
            "http://[::1%25lo]/",
            "http://[fe80::1%25eth0]/",
            "http://[v1.x]/",
            "http://[a.b]/",
        ),
        *("http://a.example.com@127.0.0.1/", "http://@a.example.com/", "http://u:p@a.example.com/"),
        *("http://a.example.com\\@127.0.0.1/", "http://127.0.0.1\\.example.com/", "http:\\\\127.0.0.1/"),
        *("http://%31%32%37.0.0.1/", "http://127.0.0.1%2ecom/", "http://127.0.0.1%00.a.com/"),
        *(
            " http://a.example.com/",
            "http://a.exam\tple.com/",
            "http://a.example.com/\r\nHost:x",
            "http://a b/",
        ),
        *(
            "http://localhost/",
            "http://LOCALHOST/",
            "http://x.localhost/",
            "http://intranet/",
            "http://router/",
        ),
        *(
            "http://metadata.google.internal/",
            "http://printer.local/",
            "http://nas.home.arpa/",
            "http://com/",
        ),
        *("http:127.0.0.1/", "http:///127.0.0.1/", "//a.example.com/", "/x", "", "a.example.com", "http://"),
        *(
            "ftp://a.example.com/",
            "file:///etc/passwd",
            "gopher://a.example.com/",
            "unix://x/",
            "http+unix://x/",
        ),
        *(
            "http://a.example.com:22/",
            "http://a.example.com:0/",
            "http://a.example.com:8080/",
            "https://a.de:99999/",
        ),
        *(
            "http://a.example.com:80:80/",
            "http://a.example.com:x/",
            "http://-a.example.com/",
            "http://a..com/",
        ),
        *(
            "http://a\u200b.com/",
            "http://a\u00ad.internal/",
            f"http://{'a' * 64}.com/",
            f"http://{'a.' * 130}com/",
        ),
    ],
)
def test_a_url_that_is_refused(url):
    assert UrlPolicy().objection(url) is not None


@pytest.mark.parametrize(
    "url",
    [
        *("http://a.example.com/", "https://a.example.com/x?y=http://127.0.0.1/#@z", "HTTP://A.Example.COM"),
        *(
            "http://a.example.com:443/",
            "http://a.example.com./",
            "http://a_b.example.com/",
            "http://münchen.de/",
        ),
        *(
            "http://xn--mnchen-3ya.de/",
            "http://1.2.3.4.example.com/",
            "http://0x7f.example.com/",
            "http://a.de?@b",
        ),
    ],
)
def test_a_url_that_may_be_called(url):
    assert UrlPolicy().objection(url) is None


def test_scheme_and_port_are_a_setting():
    assert UrlPolicy(ports=None).objection("http://a.example.com:8080/") is None
    assert "port 8443" in UrlPolicy(ports={8443}).objection("https://a.example.com/")
    assert "scheme https" in UrlPolicy(schemes={"https"}).objection("http://a.example.com/")


@given(st.integers(0, 2**32 - 1), st.data())
def test_no_spelling_of_an_inner_ipv4_address_passes(number, data):
    """Every spelling that inet_aton reads: what it reads is what a socket would be connected to."""
    parts = [number >> 24, number >> 16 & 255, number >> 8 & 255, number & 255]
    count = data.draw(st.integers(1, 4))
    parts = [*parts[: count - 1], number & (2 ** (8 * (5 - count)) - 1)]
    spell = st.sampled_from(("{}", "{:#x}", "{:#X}", "0{:o}", "{:03d}"))
    host = ".".join(data.draw(spell).format(part) for part in parts)
    wide = data.draw(st.booleans())
    url = f"http://{''.join(chr(ord(c) + 0xFEE0) if wide and c.isdigit() else c for c in host)}/"
    try:
        read = IPv4Address(socket.inet_aton(host))
    except OSError:
        return
    assert UrlPolicy().objection(url) is not None or (is_public(read) and host == str(read))


@given(st.binary(min_size=4, max_size=4).map(IPv4Address))
def test_no_ipv6_address_stands_for_an_ipv4_address(address):
    for prefix in ("::ffff:0:0", "::", "64:ff9b::", "::ffff:0:0:0"):
        assert not is_public(IPv6Address(int(IPv6Address(prefix)) + int(address)))
    assert not is_public(IPv6Address((0x2002 << 112) + (int(address) << 80)))


@given(st.text())
def test_no_text_breaks_the_policy(text):
    for url in (text, f"http://{text}", f"http://{text}/", f"http://a.example.com:{text}/"):
        objection = UrlPolicy().objection(url)
        assert objection is None or objection.startswith("expected")


@pytest.fixture
def names(monkeypatch):
    """What names lead to: a list for each, of which every lookup takes the next."""
    answers = {}

    async def resolve(self, host, port=0, family=socket.AF_INET):
        asked = answers[host]
        found = asked.pop(0) if len(asked) > 1 else asked[0]
        return [
            {"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}
            for address in found
        ]

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    return answers


def guarded(**options):
    """The policy with every port, since a test's server has none of the usual ones."""
    return Client(
        Redirects(UrlGuard(AiohttpTransport(), policy=UrlPolicy(ports=None), **options)), timeout=5.0
    )


def port_of(upstream):
    return upstream.url.rpartition(":")[2]


async def test_a_refused_url_is_never_called(upstream):
    async with guarded() as client:
        with pytest.raises(UrlRefused, match="expected a host of the public internet") as caught:
            await client.get(upstream.url + "/ok", source="posts")
    assert (upstream.accepted, caught.value.status, caught.value.source) == (0, 422, "posts")


async def test_a_source_may_be_exempt(upstream):
    async with guarded(exempt={"posts": upstream.url}) as client:
        assert (await client.get(upstream.url + "/ok", source="posts")).status_code == 200
        with pytest.raises(UrlRefused):
            await client.get(upstream.url + "/ok", source="other")
        with pytest.raises(UrlRefused):
            await client.get(upstream.url + "/ok")


async def test_a_source_is_exempt_where_it_is_only(upstream):
    async with FaultyUpstream() as other, guarded(exempt={"posts": upstream.url}) as client:
        with pytest.raises(UrlRefused):
            await client.get(other.url + "/ok", source="posts")
        assert other.accepted == 0


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["::1"], ["::ffff:127.0.0.1"]]
)
async def test_a_name_that_leads_inside(upstream, names, addresses):
    names["a.example.com"] = [addresses]
    async with guarded() as client:
        with pytest.raises(UrlRefused, match="this one's address is not"):
            await client.get(f"http://a.example.com:{port_of(upstream)}/ok")
    assert upstream.accepted == 0


@pytest.fixture
def public(monkeypatch):
    """Addresses that are the public internet for one test, since none of it can be reached here."""
    addresses = set()
    judge = aiohttp_connection.is_public
    monkeypatch.setattr(aiohttp_connection, "is_public", lambda each: str(each) in addresses or judge(each))
    return addresses


async def test_a_name_that_leads_outside(upstream, names, public):
    names["a.example.com"] = [["10.0.0.1", "127.0.0.1"]]
    public.add("127.0.0.1")
    async with guarded() as client:
        assert (await client.get(f"http://a.example.com:{port_of(upstream)}/ok")).status_code == 200


async def test_a_name_that_leads_inside_the_second_time(upstream, names, public):
    """DNS rebinding: what was looked up before does not count, only what is connected."""
    names["a.example.com"] = [["127.0.0.2"], ["127.0.0.1"]]
    public.add("127.0.0.2")  # where nobody listens
    url = f"http://a.example.com:{port_of(upstream)}/ok"
    transport = AiohttpTransport()
    async with Client(UrlGuard(transport, policy=UrlPolicy(ports=None)), timeout=5.0) as client:
        with pytest.raises(UpstreamUnreachable):
            await client.get(url)
        transport._sessions[True].connector.clear_dns_cache()
        with pytest.raises(UrlRefused):
            await client.get(url)
    assert upstream.accepted == 0


async def test_a_literal_address_is_judged_where_it_is_connected(upstream):
    """aiohttp asks no resolver for it; the policy before is left out here."""

    class Lenient(UrlPolicy):
        def objection(self, url):
            return None

    async with Client(UrlGuard(AiohttpTransport(), policy=Lenient())) as client:
        for host in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
            with pytest.raises(UrlRefused, match="this one's address is not"):
                await client.get(f"http://{host}:{port_of(upstream)}/ok")
    assert upstream.accepted == 0


async def test_a_connection_of_an_exempt_source_serves_no_one_else(upstream, names):
    names["inner.example.com"] = [["127.0.0.1"]]
    url = f"http://inner.example.com:{port_of(upstream)}/ok"
    async with guarded(exempt={"posts": url}) as client:
        assert (await client.get(url, source="posts")).status_code == 200
        with pytest.raises(UrlRefused):
            await client.get(url)
        assert (await client.get(url, source="posts")).status_code == 200
    assert (upstream.accepted, upstream.calls["/ok"]) == (1, 2)


async def test_a_redirect_is_judged_like_a_url(upstream, names):
    names["inner.example.com"] = [["127.0.0.1"]]
    async with FaultyUpstream() as other, guarded(exempt={"posts": upstream.url}) as client:
        for location in (f"{other.url}/secret", f"http://inner.example.com:{port_of(other)}/secret"):
            upstream.script(
                "/away", say(render(b"", status="302 Found", headers=f"Location: {location}\r\n"))
            )
            with pytest.raises(RedirectRefused, match="to where it may not") as caught:
                await client.get(upstream.url + "/away", source="posts")
            assert (caught.value.status, caught.value.source) == (502, "posts")
        assert other.accepted == 0


async def test_a_redirect_to_its_own_origin_stays_exempt(upstream):
    async with guarded(exempt={"posts": upstream.url}) as client:
        response = await client.get(upstream.url + "/redirect-on/3", source="posts")
    assert response.url == upstream.url + "/redirect-on/0"
