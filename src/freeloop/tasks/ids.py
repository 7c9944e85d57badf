"""Task ids: UUIDv7 (RFC 9562, section 5.7), which begin with the time."""

from __future__ import annotations

import os
import time
from uuid import UUID


def make_id() -> UUID:
    """Return a new id: 48 bits of milliseconds, 12 bits of their fraction, and 62 random ones.

    Unguessable, and in the order of time to within 0.3 µs on one machine.
    """
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = (rest << 12) // 1_000_000
    chance = int.from_bytes(os.urandom(8)) & ((1 << 62) - 1)
    return UUID(
        int=((milliseconds & ((1 << 48) - 1)) << 80) | (7 << 76) | (fraction << 64) | (2 << 62) | chance
    )


def oldest_id(seconds: float) -> UUID:
    """Return an id that is less than each that was made since a time.

    Args:
        seconds: The time, in seconds since the epoch.
    """
    return UUID(int=(int(max(0.0, seconds) * 1000) & ((1 << 48) - 1)) << 80)
