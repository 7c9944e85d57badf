"""What the peers of the case ``items`` have in common: where the items are, and how many connections."""

import os

SOCKET = os.environ.get("BENCH_SOCKET", "")
URL = "postgresql://postgres@localhost/freeloop"
CONNECTIONS = 10  # what asyncpg's pool, the `databases` library and ours have by default
PAGE = """
    SELECT id, name, description, price, tags, created_at, updated_at
    FROM plain_items WHERE id > $1 ORDER BY id LIMIT $2
"""


async def keep_session(_: object) -> None:
    """Send no reset when a connection comes back to asyncpg's pool."""
