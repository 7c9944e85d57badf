"""So many at once, the others in line, and no slot lost."""

import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloop.errors import UpstreamBusy, UpstreamTimeout, UpstreamUnreachable
from freeloop.outbound import AiohttpTransport
from freeloop.outbound.attempt import AttemptTimeout
from freeloop.outbound.bulkhead import Bulkhead, Compartment
from freeloop.testing import FaultyUpstream, eventually
from virtual_time import Upstream, call, clock, simulate


def layer(upstream, *, time=clock, **limits):
    return Bulkhead(upstream, lambda _: Compartment(**limits), clock=time)


def test_only_so_many_run_at_once_and_the_others_have_what_is_left_of_their_time():
    async def main():
        upstream = Upstream(seconds=1.0)
        bulkhead = layer(upstream, most=3)
        async with asyncio.TaskGroup() as group:
            for _ in range(9):
                group.create_task(bulkhead.send(call(timeout=10.0)))
        assert upstream.most == 3
        assert [request.timeout for _, request in upstream.calls] == [10.0] * 3 + [9.0] * 3 + [8.0] * 3

    simulate(main)


def test_sources_do_not_wait_for_each_other():
    async def main():
        upstream = Upstream(seconds=1.0)
        bulkhead = layer(upstream, most=1)
        async with asyncio.TaskGroup() as group:
            for source in ("a", "b", "c"):
                group.create_task(bulkhead.send(call(source=source)))
        assert upstream.most == 3

    simulate(main)


def test_a_source_that_is_in_use_is_not_forgotten_for_others():
    async def main():
        upstream = Upstream(seconds=1.0)
        bulkhead = layer(upstream, most=1)
        task = asyncio.create_task(bulkhead.send(call()))
        await asyncio.sleep(0)
        upstream.seconds = 0.0
        for number in range(1100):
            await bulkhead.send(call(source=str(number)))
        await bulkhead.send(call())
        assert upstream.times[-1] - upstream.times[0] == 1.0
        await task

    simulate(main)


def test_who_waits_too_long_is_told_for_which_source():
    async def main():
        bulkhead = layer(Upstream(seconds=5.0), most=1)
        async with asyncio.TaskGroup() as group:
            group.create_task(bulkhead.send(call()))
            await asyncio.sleep(0)
            started = clock()
            with pytest.raises(UpstreamBusy, match=r"source 'prices'.*no slot came free within 2 s \(1 of 1"):
                await bulkhead.send(call(timeout=2.0))
            assert clock() == started + 2.0

    simulate(main)


def test_a_full_queue_refuses_at_once():
    async def main():
        bulkhead = layer(Upstream(seconds=1.0), most=1, queue=2)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(bulkhead.send(call()))
            await asyncio.sleep(0)
            started = clock()
            with pytest.raises(UpstreamBusy, match=r"source 'prices'.*2 of 2 wait") as busy:
                await bulkhead.send(call())
            assert clock() == started
            assert (busy.value.status, busy.value.headers) == (503, {"Retry-After": "1"})

    simulate(main)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 20))
def test_slots_are_neither_lost_nor_created_and_go_out_in_order(seed, most, queue):
    rng = random.Random(seed)  # noqa: S311 - traffic, no secret

    async def main():
        upstream = Upstream()
        bulkhead = layer(upstream, most=most, queue=queue)
        began = []

        class Noting:
            async def send(self, request):
                began.append((int(request.url), clock()))
                return await upstream.send(request)

        bulkhead._transport = Noting()
        arrived = []

        async def one(number):
            arrived.append(number)
            await bulkhead.send(call(url=str(number), timeout=rng.choice([0.1, 1.0, 5.0])))

        tasks = []
        for number in range(60):
            failing = rng.random() < 0.2
            upstream.script.append(
                (rng.choice([0.0, 0.1, 1.0]), UpstreamUnreachable("x") if failing else 200)
            )
            tasks.append(asyncio.create_task(one(number)))
            if rng.random() < 0.3:
                # Often in the very turn of the loop in which a slot is handed over.
                asyncio.get_running_loop().call_later(rng.choice([0, 0.1, 0.2, 1.0]), tasks[-1].cancel)
            await asyncio.sleep(rng.choice([0, 0, 0.05, 0.1]))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert upstream.most <= most
        # Those of the same moment may begin in any order.
        assert [when for _, when in sorted(began)] == [when for _, when in began]
        # All slots are there again: as many run at once as may.
        upstream.script.clear()
        upstream.seconds, upstream.most = 1.0, 0
        bulkhead._transport = upstream
        async with asyncio.TaskGroup() as group:
            for _ in range(most + min(queue, 1)):
                group.create_task(bulkhead.send(call()))
        assert upstream.most == most

    simulate(main)


async def test_cancelled_calls_give_their_slots_and_sockets_back():
    async with FaultyUpstream() as upstream:
        bulkhead = layer(AiohttpTransport(), time=asyncio.get_running_loop().time, most=2)
        try:
            hanging = [asyncio.create_task(bulkhead.send(call(url=f"{upstream.url}/hang"))) for _ in range(4)]
            await eventually(lambda: upstream.calls["/hang"] == 2)
            for task in hanging:
                task.cancel()
            await asyncio.wait(hanging)
            async with asyncio.timeout(5):
                await upstream.wait_empty()
            assert (await bulkhead.send(call(url=f"{upstream.url}/ok"))).status_code == 200
            assert upstream.calls["/hang"] == 2
        finally:
            await bulkhead.close()


def test_the_attempts_time_starts_when_it_has_its_slot():
    async def main():
        upstream = Upstream(seconds=1.5)
        bulkhead = layer(AttemptTimeout(upstream, 2.0), most=1)
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(bulkhead.send(call(timeout=5.9)))
        assert [request.timeout for _, request in upstream.calls] == pytest.approx([2.0, 2.0, 2.0, 1.4])

    with pytest.RaisesGroup(UpstreamTimeout):
        simulate(main)


def test_the_time_is_all_that_differs():
    request = call("POST", timeout=5.0, headers={"A": "b"}, content=b"x", public_only=True, idempotent=True)
    assert request.within(2.0) == replace(request, timeout=2.0)
    assert request.timeout == 5.0


def test_a_shorter_time_is_left_alone():
    async def main():
        upstream = Upstream()
        request = call(timeout=1.0)
        await AttemptTimeout(upstream, 2.0).send(request)
        assert upstream.calls[0][1] is request

    simulate(main)
    with pytest.raises(ValueError, match="over 0"):
        AttemptTimeout(Upstream(), 0)
