"""Wait for what gives no signal, with a bound."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

_INTERVAL: Final = 0.01


async def eventually(condition: Callable[[], object | Awaitable[object]], *, within: float = 5.0) -> None:
    """Wait until a condition holds. For what gives no signal to wait on.

    Args:
        condition: a plain or async function; true where it holds.
        within: seconds to wait at most.

    Raises:
        AssertionError: It did not hold in time.
    """
    with anyio.move_on_after(within):
        while True:
            answer = condition()
            if await answer if inspect.isawaitable(answer) else answer:
                return
            await anyio.sleep(_INTERVAL)
    raise AssertionError(
        f"the condition did not hold within {within} s: {inspect.getsource(condition).strip()}"
    )
