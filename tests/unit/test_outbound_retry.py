"""What is sent again, when, and how often."""

import asyncio
import contextlib
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloop.errors import (
    OutboundError,
    UpstreamBodyInvalid,
    UpstreamBusy,
    UpstreamSuspended,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from freeloop.outbound import AiohttpTransport, Response
from freeloop.outbound.budget import RetryBudget
from freeloop.outbound.retry import Retry, RetryPolicy, read_retry_after
from freeloop.outbound.sources import Sources
from freeloop.testing import FaultyUpstream
from virtual_time import Upstream, arrive, be_late, broken, call, clock, refused, simulate

NOW = 1_800_000_000.0  # a Friday in 2027


def answer(status, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status_code=status, headers=headers, content=b"", url="", request=call())


def budgets():
    return Sources(lambda _: RetryBudget())


def layer(upstream, *, dice=0.5, **policy):
    return Retry(
        upstream,
        budgets(),
        policy=RetryPolicy(**policy),
        clock=clock,
        wall=lambda: NOW,
        dice=lambda: dice,
    )


def pause(outcome, request=None, *, attempt=1, remaining=100.0, dice=0.5, **policy):
    return RetryPolicy(**policy).pause(
        request or call(), outcome, attempt=attempt, remaining=remaining, dice=dice, now=NOW
    )


@pytest.mark.parametrize(
    ("outcome", "get", "post"),
    [
        (refused(), True, True),
        (broken(), True, False),
        (UpstreamTimeout("slow"), True, False),
        (answer(502), True, False),
        (answer(503), True, False),
        (answer(504), True, False),
        (answer(429, Retry_After="1"), True, False),
        (answer(429), False, False),
        (answer(500), False, False),
        (answer(404), False, False),
        (UpstreamBodyInvalid("garbage"), False, False),
        (UpstreamSuspended("open"), False, False),
        (UpstreamBusy("full"), False, False),
    ],
)
def test_what_is_repeated(outcome, get, post):
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
        assert (pause(outcome, call(method)) is not None) is get
    for method in ("POST", "PATCH", "CONNECT", "get"):
        assert (pause(outcome, call(method)) is not None) is post
    assert (pause(outcome, call("POST", idempotent=True)) is not None) is get
    assert (pause(outcome, call("GET", idempotent=False)) is not None) is post


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True), st.floats(0, 10), st.floats(0.001, 100))
def test_a_pause_is_below_the_ceiling_and_within_the_time(attempt, dice, base, remaining):
    found = pause(
        broken(), attempt=attempt, attempts=5000, dice=dice, base=base, longest=20.0, remaining=remaining
    )
    if found is None:
        assert dice * min(20.0, base * 2.0 ** min(attempt - 1, 1000)) >= remaining
    else:
        assert 0 <= found < remaining
        assert found <= min(20.0, base * 2.0 ** min(attempt - 1, 1000))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("999999999", 999_999_999.0),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW - 30, usegmt=True), 0.0),
        ("Friday, 15-Jan-27 08:00:10 GMT", 10.0),
        ("Fri Jan 15 08:00:10 2027", 10.0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("9" * 5000, None),
        ("soon", None),
        ("Fri, 99 Jan 2027 08:00:10 GMT", None),
        ("Fri, 15 Jan 99999999999 08:00:10 GMT", None),
    ],
)
def test_retry_after_in_all_its_forms(value, seconds):
    assert read_retry_after(answer(503, Retry_After=value), NOW) == seconds


@given(st.text() | st.text("0123456789:, GMTJan-+"))
def test_retry_after_may_be_anything(value):
    found = read_retry_after(answer(503, Retry_After=value, Date=value), NOW)
    assert found is None or found >= 0


def test_a_date_is_compared_with_the_answers_own():
    wrong = NOW - 86_400  # their clock
    found = answer(503, Retry_After=formatdate(wrong + 5, usegmt=True), Date=formatdate(wrong, usegmt=True))
    assert read_retry_after(found, NOW) == 5.0


def test_the_pause_is_what_the_upstream_asks_for_and_jitter_on_top():
    assert pause(answer(429, Retry_After="3"), dice=0.5, base=1.0) == 3.5
    assert pause(answer(503, Retry_After="3"), dice=0.0) == 3.0
    assert pause(answer(503, Retry_After="3"), remaining=3.0, dice=0.0) is None
    assert pause(answer(503, Retry_After="nonsense"), dice=0.5, base=1.0) == 0.5


def test_a_failed_call_is_repeated_until_it_succeeds():
    async def main():
        upstream = Upstream()
        upstream.script.extend([(0.1, refused()), (0.1, 503), (0.1, 200)])
        assert (await layer(upstream).send(call(timeout=10.0))).status_code == 200
        assert [when - upstream.times[0] for when in upstream.times] == pytest.approx([0, 0.15, 0.35])
        # Each attempt has what is left.
        assert [request.timeout for _, request in upstream.calls] == pytest.approx([10, 9.85, 9.65])

    simulate(main)


def test_the_last_failure_is_the_answer():
    async def main():
        upstream = Upstream(answer=503)
        assert (await layer(upstream).send(call())).status_code == 503
        assert len(upstream.calls) == 3
        upstream.script.extend([(0, 503), (0, refused()), (0, UpstreamUnreachable("the third"))])
        with pytest.raises(UpstreamUnreachable, match="the third"):
            await layer(upstream).send(call())

    simulate(main)


def test_a_post_whose_answer_was_lost_is_sent_once():
    async def main():
        upstream = Upstream(answer=broken())
        with pytest.raises(UpstreamUnreachable):
            await layer(upstream).send(call("POST", content=b"pay"))
        assert len(upstream.calls) == 1

    simulate(main)


@given(
    st.floats(0.05, 5),
    st.lists(st.tuples(st.floats(0, 3), st.sampled_from([200, 503, 429, 0, 1])), min_size=5, max_size=5),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 4),
)
def test_no_attempt_begins_when_the_time_is_over(timeout, script, dice, asked):
    async def main():
        kinds = {0: refused(), 1: broken(), 429: (429, {"Retry-After": str(asked)})}
        upstream = Upstream()
        upstream.script.extend((seconds, kinds.get(kind, kind)) for seconds, kind in script)
        started = clock()
        with contextlib.suppress(OutboundError):
            await layer(upstream, dice=dice, attempts=5, base=1.0).send(call(timeout=timeout))
        assert clock() <= started + timeout + 1e-6
        for when, request in upstream.calls:
            assert request.timeout > 0
            assert when + request.timeout <= started + timeout + 1e-6

    simulate(main)


def test_a_caller_that_is_cancelled_in_a_pause_gives_its_token_back():
    async def main():
        upstream = Upstream(answer=503)
        retry = Retry(
            upstream, kept := budgets(), policy=RetryPolicy(base=5.0), clock=clock, dice=lambda: 0.9
        )
        for _ in range(50):
            task = asyncio.create_task(retry.send(call()))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(upstream.calls) == 50
        budget = kept.of(call())
        granted = sum(budget.withdraw(clock()) is not None for _ in range(10))
        assert granted == 5  # all that 50 calls allow

    simulate(main)


def test_a_loop_that_is_late_makes_no_attempt_after_the_time():
    async def main():
        upstream = Upstream(answer=503)
        retry = Retry(
            upstream, kept := budgets(), policy=RetryPolicy(base=1.0), clock=clock, dice=lambda: 0.5
        )
        asyncio.get_running_loop().call_later(0.4, be_late, 5.0)
        assert (await retry.send(call(timeout=2.0))).status_code == 503
        assert len(upstream.calls) == 1
        assert sum(kept.of(call()).withdraw(clock()) is not None for _ in range(10)) == 5

    simulate(main)


def test_an_outage_of_minutes_adds_a_tenth_at_most():
    async def main():
        upstream = Upstream(seconds=0.05)
        retry = Retry(upstream, budgets(), clock=clock)
        await arrive(retry, 50, 30)
        assert len(upstream.calls) == 1500
        upstream.answer = 503
        ends = await arrive(retry, 50, 300)
        assert set(ends) == {503}
        # The ten seconds before it have earned theirs, too.
        assert 16_000 <= len(upstream.calls) - 1500 <= 15_000 + 0.1 * (15_000 + 500)
        assert len(upstream.calls) <= 1.1 * (1500 + 15_000)
        upstream.answer = 200
        before = len(upstream.calls)
        assert set(await arrive(retry, 50, 30)) == {200}
        assert len(upstream.calls) - before <= 1510  # the last pauses of the outage

    simulate(main)


def test_a_herd_that_fails_at_once_does_not_return_at_once():
    async def main():
        upstream = Upstream(answer=503)
        retry = Retry(upstream, Sources(lambda _: RetryBudget(share=10.0)), clock=clock)
        async with asyncio.TaskGroup() as group:
            for _ in range(1000):
                group.create_task(retry.send(call()))
        second = sorted(when - upstream.times[0] for when in upstream.times if when > upstream.times[0])
        assert len(second) == 2000
        assert max(sum(t <= when < t + 0.01 for when in second) for t in second) < 250

    simulate(main)


def test_a_single_attempt_only_counts_the_calls():
    async def main():
        upstream = Upstream(answer=503)
        retry = Retry(upstream, kept := budgets(), policy=RetryPolicy(attempts=1), clock=clock)
        for _ in range(200):
            await retry.send(call())
        assert len(upstream.calls) == 200
        granted = sum(kept.of(call()).withdraw(clock()) is not None for _ in range(50))
        assert granted == 20

    simulate(main)


async def test_over_a_real_connection():
    async with FaultyUpstream() as upstream:
        transport = AiohttpTransport()
        retry = Retry(transport, budgets(), policy=RetryPolicy(base=0.001))
        try:
            upstream.script("/a", "close", "reset", "ok")
            response = await retry.send(call(url=f"{upstream.url}/a"))
            assert (response.status_code, upstream.calls["/a"]) == (200, 3)
            assert 0 < response.elapsed.total_seconds() < 10

            upstream.script("/b", "close", "ok")
            with pytest.raises(UpstreamUnreachable):
                await retry.send(call("POST", url=f"{upstream.url}/b", content=b"x"))
            assert upstream.calls["/b"] == 1

            upstream.script("/c", "busy", "ok")  # Retry-After: 7, longer than the call has
            assert (await retry.send(call(url=f"{upstream.url}/c", timeout=5.0))).status_code == 429
            assert upstream.calls["/c"] == 1

            with pytest.raises(UpstreamUnreachable) as refusal:
                await retry.send(call("POST", url=f"{upstream.refusing_url}/", content=b"x"))
            assert not refusal.value.sent
        finally:
            await retry.close()
