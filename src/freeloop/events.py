"""Waiting for an event, but not for ever.

Any room may import it; it imports nothing of ours.
"""

from __future__ import annotations

import asyncio


async def wait_at_most(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until an event is set; return whether it was within ``seconds``. None: as long as it takes."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
