"""Many calls at once: bounded, structured, and no task outlives them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Generic, Literal, Protocol, TypeVar, overload

from freeloop.errors import UpstreamUnreachable

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Getter(Protocol[R_co]):
    """Anything with an async ``get(url)``: :class:`freeloop.outbound.Client`, or what stands before it."""

    @property
    def get(self) -> Callable[..., Awaitable[R_co]]:
        """Fetch one URL."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """How one of many calls ended.

    Attributes:
        url: What was called.
        place: Its place among the URLs; 0 for the first.
        answer: The answer, or the error that it failed with.
    """

    url: str
    place: int
    answer: R | Exception

    def result(self) -> R:
        """Return the answer, or raise the error."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@overload
async def fetch_all(
    client: Getter[R],
    urls: Iterable[str],
    *,
    limit: int = 10,
    policy: Literal["first-error"] = "first-error",
    **options: Any,  # noqa: ANN401 - handed on
) -> list[R]: ...
@overload
async def fetch_all(
    client: Getter[R],
    urls: Iterable[str],
    *,
    limit: int = 10,
    policy: Literal["collect"],
    **options: Any,  # noqa: ANN401 - handed on
) -> list[R | Exception]: ...


async def fetch_all(
    client: Getter[R],
    urls: Iterable[str],
    *,
    limit: int = 10,
    policy: Literal["first-error", "collect"] = "first-error",
    **options: Any,
) -> list[R] | list[R | Exception]:
    """Fetch many URLs at the same time; return their answers in the order of the URLs.

    Args:
        client: What makes each call.
        urls: Read as the calls are made; may be long.
        limit: Calls at once, 1 or more; 10 by default, which few upstreams mind.
        policy: "first-error" cancels the others at the first failure, waits until they have ended, and raises
            it; "collect" puts errors in the place of answers.
        options: Handed to each call, such as ``headers`` and ``timeout``.

    Raises:
        OutboundError: The first failure, with "first-error".
        ValueError: ``limit`` is less than 1.
    """
    arrived: dict[int, R | Exception] = {}
    async with as_completed(client, urls, limit=limit, **options) as outcomes:
        async for outcome in outcomes:
            arrived[outcome.place] = outcome.answer if policy == "collect" else outcome.result()
    return [arrived[place] for place in range(len(arrived))]


@asynccontextmanager
async def as_completed(
    client: Getter[R],
    urls: Iterable[str],
    *,
    limit: int = 10,
    **options: Any,  # noqa: ANN401 - handed on
) -> AsyncGenerator[AsyncIterator[Outcome[R]]]:
    """Fetch many URLs at the same time; give their outcomes as they arrive.

    ::

        async with as_completed(client, urls, limit=20, timeout=5.0) as outcomes:
            async for outcome in outcomes:
                rows.append(outcome.result().json())

    At the end of the block, however it is left, no call is under way: those that are not done are cancelled
    and waited for. Where outcomes are read slowly, calls are made slowly.

    Args:
        client: What makes each call.
        urls: Read as the calls are made; may be long.
        limit: Calls at once, and outcomes that wait to be read; 1 or more, 10 by default.
        options: Handed to each call, such as ``headers`` and ``timeout``.

    Raises:
        ValueError: ``limit`` is less than 1.
    """
    if limit < 1:
        raise ValueError(f"limit is 1 call at once or more, not {limit}")
    ready: asyncio.Queue[Outcome[R] | None] = asyncio.Queue(limit)
    numbered = enumerate(urls)
    failure: Exception | None = None

    async def work() -> None:
        for place, url in numbered:  # shared by all workers: each takes the next one
            await ready.put(Outcome(url, place, await _attempt(client, url, options)))
        await ready.put(None)

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(work()) for _ in range(min(limit, length_hint(urls, limit)))]
        outcomes = _read(ready, len(workers))
        try:
            yield outcomes
        except Exception as error:  # noqa: BLE001 - raised below: the group would wrap it
            failure = error
        finally:
            for worker in workers:
                worker.cancel()
            await outcomes.aclose()
    try:
        if failure is not None:
            raise failure
    finally:
        del failure  # its traceback holds this frame


async def _read(ready: asyncio.Queue[Outcome[R] | None], working: int) -> AsyncGenerator[Outcome[R]]:
    while working:
        outcome = await ready.get()
        if outcome is None:
            working -= 1
        else:
            yield outcome


async def _attempt(client: Getter[R], url: str, options: dict[str, Any]) -> R | Exception:
    try:
        return await client.get(url, **options)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Not we were cancelled, but something that the call waited for.
        return UpstreamUnreachable("the call was cancelled by what carried it")
    except Exception as error:  # noqa: BLE001 - an outcome like others, which the reader raises or not
        return error
