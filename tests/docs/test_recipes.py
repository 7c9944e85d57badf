"""The recipes in the docs do what they promise."""

import re
from pathlib import Path

import pytest

from freeloop.service.items.changelog import ORIGIN, read_log

PAGE = Path(__file__).parents[2] / "docs" / "items.md"


@pytest.fixture
def recipe():
    return re.search(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


async def test_a_restored_log_begins_anew(database, recipe):
    await database.execute("INSERT INTO items (name, price) VALUES ('old', 1)")
    # As after a restore into a cluster whose transaction ids are behind.
    await database.execute("ALTER TABLE items DISABLE TRIGGER USER; UPDATE items SET stamp = '900000000000'")
    await database.execute("ALTER TABLE items ENABLE TRIGGER USER")
    await database.execute("UPDATE items SET name = 'unread'")
    assert "unread" not in str((await read_log(database, ORIGIN, limit=10)).changes)

    await database.execute(recipe)
    await database.execute("UPDATE items SET name = 'read'")
    (change,) = (await read_log(database, ORIGIN, limit=10)).changes
    assert '"read"' in change.data
