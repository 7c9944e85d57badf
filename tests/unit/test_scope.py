"""The scope's id: the caller's where valid, else the trace id, else a new one."""

import asyncio

import pytest

from freeloop import current_scope
from freeloop.scope import Scope, choose_request_id

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("request_id", "traceparent", "expected"),
    [
        (b"abc.DEF_1~-", None, "abc.DEF_1~-"),
        (b"abc", TRACE, "abc"),
        (None, TRACE, "4bf92f3577b34da6a3ce929d0e0e4736"),
        (b"has space", TRACE, "4bf92f3577b34da6a3ce929d0e0e4736"),
        (b"x" * 128, None, "x" * 128),
    ],
)
def test_a_valid_id_is_taken_over(request_id, traceparent, expected):
    assert choose_request_id(request_id, traceparent) == expected


@pytest.mark.parametrize("bad", [b"", b"x" * 129, b"a\r\nb", b'"', b"\xe4", b"a\n"])
def test_an_invalid_id_is_replaced(bad):
    chosen = choose_request_id(bad, None)
    assert len(chosen) == 32
    assert chosen != choose_request_id(bad, None)


@pytest.mark.parametrize(
    "bad",
    [
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01",
        b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        TRACE.upper(),
        TRACE[:-1],
    ],
)
def test_an_invalid_traceparent_is_ignored(bad):
    assert choose_request_id(None, bad) != "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_the_scope_is_seen_in_child_tasks_and_threads_and_not_outside():
    async def unit_of_work():
        Scope("one").enter()

        async def child():
            return current_scope().id

        here = await asyncio.create_task(child())
        there = await asyncio.to_thread(lambda: current_scope().id)
        return here, there

    assert await asyncio.create_task(unit_of_work()) == ("one", "one")
    assert current_scope() is None
