"""Find what blocks the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blockbuster import blockbuster_ctx


@contextmanager
def no_blocking() -> Iterator[None]:
    """Let a blocking call raise where an event loop runs in its thread.

    Raises:
        blockbuster.BlockingError: In the block, out of the blocking call.
    """
    with blockbuster_ctx() as detector:
        for function in detector.functions.values():
            # asyncpg looks for the password file and the client certificates of libpq, once for each
            # new connection, in files of the home folder, and offers no way to do it elsewhere.
            function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_arguments"})
            # The watchdog's thread is woken and ends at once; it must not look at a loop that has gone on.
            function.can_block_in("freeloop/watch/probe.py", {"stop"})
        yield
