"""What an app gets of the layers: through its kit, in its routes, and in its metrics."""

import asyncio
import re
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from fastapi import FastAPI

from freeloop import Freeloop, GuardedOutbound, Outbound, Source, current_scope, deadline
from freeloop.errors import RedirectRefused, UpstreamTimeout, UpstreamUnreachable
from freeloop.gate.problems import install_problem_handlers
from freeloop.service import fetch
from freeloop.settings import Settings
from freeloop.testing import FaultyUpstream, eventually
from freeloop.testing.answers import render, say
from serving import served

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def make_app(*, settings=None, lifespan=None, **options):
    app = FastAPI(lifespan=lifespan)
    kit = Freeloop(app, settings=Settings(_env_file=None, **settings or {}), **options)
    install_problem_handlers(app)
    app.include_router(fetch.router)

    @app.get("/call")
    @deadline(0.3)
    async def call(outbound: Outbound, path: str) -> str:
        return (await outbound.get(path, source="faulty")).text

    @app.get("/call-guarded")
    async def call_guarded(outbound: GuardedOutbound, url: str, source: str | None = None) -> str:
        return (await outbound.get(url, source=source)).text

    return app, kit


def running(app):
    return served(app, lifespan="on")


def redirect_to(url):
    return render(b"", status="302 Found", headers=f"Location: {url}\r\n")


async def ask(session, path, **options):
    async with session.get(path, **options) as answer:
        return answer.status, answer.headers, await answer.json()


async def test_what_the_app_says_the_settings_may_change(upstream):
    said = {
        "a": Source("http://a.example/", timeout=1.0, coalesce=True),
        "b": Source("http://b.example/", timeout=2.0),
    }
    settings = {"sources": {"a": "http://other.example/", "c": {"url": "http://c.example/", "rate": 5}}}
    _, kit = make_app(settings=settings, sources=said, source_defaults=Source(retries=0))
    async with kit.open():
        assert kit.outbound._sources == {
            "a": Source("http://other.example/", timeout=1.0, coalesce=True),
            "b": said["b"],
            "c": Source("http://c.example/", rate=5, retries=0),
        }


async def test_a_deadline_ends_with_the_clear_error_of_the_call(upstream):
    app, _ = make_app(sources={"faulty": Source(upstream.url)})
    async with running(app) as (session, _):
        status, _, problem = await ask(session, "/call?path=/hang")
    assert status == 504
    assert problem["detail"].startswith("source 'faulty' (GET ")
    assert "did not answer completely within 0." in problem["detail"]


@pytest.mark.parametrize("source", [None, "of nobody"])
async def test_the_timeout_of_all_others_holds_for_calls_without_a_source_too(upstream, source):
    _, kit = make_app(source_defaults=Source(timeout=0.1), sources={"own": Source(timeout=0.2)})
    async with kit.open():
        for name, seconds in ((source, 0.1), ("own", 0.2)):
            with pytest.raises(UpstreamTimeout, match=f"within {seconds} s"):
                await kit.outbound.get(f"{upstream.url}/hang", source=name)


async def test_a_call_without_a_source_is_known_by_its_host_and_shows_no_secret(upstream):
    app, _ = make_app()
    held = []

    @app.get("/secret")
    async def call(outbound: Outbound) -> None:
        host = upstream.url.removeprefix("http://")
        calling = asyncio.ensure_future(outbound.get(f"http://me:secret@{host}/hang?key=token"))
        await eventually(lambda: upstream.calls["/hang"])
        held.extend(lease.name for lease in current_scope().leases)
        calling.cancel()

    async with running(app) as (session, _):
        await ask(session, "/secret")
    assert held == [upstream.url, upstream.url.removeprefix("http://")]


async def test_the_trace_travels_on(upstream):
    app, _ = make_app(sources={"faulty": Source(upstream.url)})
    sent = {
        "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
        "tracestate": "a=1",
        "X-Request-ID": "another",
    }
    async with running(app) as (session, _):
        await ask(session, "/call?path=/ok", headers=sent)
        _, headers, _ = await ask(session, "/call?path=/ok")
    with_trace, without = (seen.head.decode() for seen in upstream.requests)
    assert re.search(rf"\r\ntraceparent: 00-{TRACE}-(?!00f067aa0ba902b7)[0-9a-f]{{16}}-01\r\n", with_trace)
    assert "\r\ntracestate: a=1\r\n" in with_trace
    assert f"\r\ntraceparent: 00-{headers['X-Request-ID']}-" in without


async def test_a_users_url_leads_to_the_public_internet_only(upstream):
    app, kit = make_app(sources={"faulty": Source(upstream.url)})
    async with FaultyUpstream() as inner, running(app) as (session, _):
        for url in (inner.url, upstream.url, "http://169.254.169.254/", "http://localhost/"):
            status, _, problem = await ask(session, "/call-guarded", params={"url": url})
            assert (status, problem["title"]) == (422, "URL refused")
        query = {"url": inner.url, "source": "faulty"}
        assert (await ask(session, "/call-guarded", params=query))[0] == 422
        assert (inner.accepted, upstream.accepted) == (0, 0)
        query = {"url": "/ok", "source": "faulty"}
        assert (await ask(session, "/call-guarded", params=query))[0] == 200
        assert (await kit.outbound.get(inner.url)).status_code == 200


async def test_an_upstream_leads_to_the_public_internet_only(upstream):
    _, kit = make_app(sources={"faulty": Source(upstream.url)})
    async with FaultyUpstream() as inner, kit.open():
        upstream.script("/away", say(redirect_to(f"{inner.url}/ok")))
        upstream.script("/inside", say(redirect_to("http://169.254.169.254/")))
        for call in (
            {"url": "/away", "source": "faulty"},
            {"url": "/inside", "source": "faulty"},
            {"url": f"{upstream.url}/away"},
        ):
            with pytest.raises(RedirectRefused, match=r"refused: expected"):
                await kit.outbound.get(**call)
        assert (upstream.calls["/away"], inner.accepted) == (2, 0)
        # On its own origin it may redirect as it likes.
        assert (await kit.outbound.get("/redirect-on/3", source="faulty")).status_code == 200


async def test_the_metrics_tell_each_layer(upstream):
    source = Source(
        upstream.url, cache=True, coalesce=True, hedge=True, rate=1000.0, burst=100, attempt_timeout=5.0
    )
    app, kit = make_app(sources={"faulty": source})
    upstream.script("/fails", "close")
    upstream.script("/kept", say(render(headers="Cache-Control: max-age=60\r\n")))
    async with running(app):
        await kit.outbound.get("/kept", source="faulty")
        await kit.outbound.get("/kept", source="faulty")
        with pytest.raises(UpstreamUnreachable):
            await kit.outbound.get("/fails", source="faulty")
        await kit.outbound.get(upstream.url)
        shown = kit.metrics.render().decode()
    for line in (
        'freeloop_upstream_attempts_total{source="faulty"} 4.0',
        'freeloop_upstream_attempts_total{source="(none)"} 1.0',
        'freeloop_upstream_running{source="faulty"} 0.0',
        'freeloop_upstream_waiting{for="rate",source="faulty"} 0.0',
        'freeloop_upstream_waiting{for="concurrency",source="(none)"} 0.0',
        'freeloop_upstream_refused_total{by="breaker",source="faulty"} 0.0',
        'freeloop_upstream_suspended{source="faulty"} 0.0',
        'freeloop_upstream_retries_total{source="faulty"} 2.0',
        'freeloop_upstream_retry_budget{source="faulty"} 3.0',
        'freeloop_upstream_hedges_total{source="faulty"} 0.0',
        'freeloop_upstream_shared_total{source="faulty"} 0.0',
        'freeloop_upstream_cache_total{result="hit",source="faulty"} 1.0',
        'freeloop_upstream_cache_total{result="miss",source="faulty"} 1.0',
    ):
        assert f"\n{line}\n" in shown
    assert 'freeloop_upstream_hedges_total{source="(none)"}' not in shown


class TestFetchData:
    """The route of the reference service, with all layers."""

    def make(self, upstream, *names):
        sources = {name: f"{upstream.url}/{name}" for name in names}

        @asynccontextmanager
        async def lifespan(_):
            yield {"service": SimpleNamespace(sources=sources, outbound=kit.outbound)}

        app, kit = make_app(
            settings={"sources": sources}, lifespan=lifespan, source_defaults=Source(coalesce=True)
        )
        return app, kit

    async def test_callers_at_the_same_time_share_a_call(self, upstream):
        together = asyncio.Event()

        async def wait(exchange):
            await together.wait()
            return await say(render())(exchange)

        upstream.script("/posts", wait)
        app, kit = self.make(upstream, "posts")
        async with running(app) as (session, _):
            calls = [asyncio.create_task(ask(session, "/fetch-data")) for _ in range(20)]
            stack = kit._resources.outbound.get().stacks.of("posts")
            async with asyncio.timeout(5):
                while stack.coalesce.joined < 19:
                    await asyncio.sleep(0.001)
            together.set()
            answers = await asyncio.gather(*calls)
        assert [status for status, _, _ in answers] == [200] * 20
        assert upstream.calls == {"/posts": 1}

    async def test_a_source_that_rests_is_told_with_the_time(self, upstream):
        app, _ = self.make(upstream, "close", "reset")
        async with running(app) as (session, _):
            for name in ("close", "reset"):
                for _ in range(40):
                    await ask(session, f"/fetch-data?source={name}")
            status, headers, problem = await ask(session, "/fetch-data?source=close")
            assert (status, problem["title"]) == (503, "Upstream suspended")
            assert 1 <= int(headers["Retry-After"]) <= 5
            status, headers, problem = await ask(session, "/fetch-data?source=close&source=reset")
            assert (status, len(problem["errors"])) == (503, 2)
            assert 1 <= int(headers["Retry-After"]) <= 5
