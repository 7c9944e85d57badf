"""The change log in PostgreSQL: positions in it, and reading it so that nothing is missed or turned around.

The order in which rows are written is not the order in which they are committed: of two transactions that
run at once, the one that drew the lower id may commit last. A reader that remembers only the last id it saw
steps over such a row for ever. So a position is the pair (stamp, row id), where the stamp is the id of the
transaction, and a reader takes only rows whose stamp is below that of every transaction that still runs
(``pg_snapshot_xmin``). Transaction ids ascend, so whatever commits later has a greater one: nothing can
appear behind a position that has been read. The price: an open writing transaction, of whatever database of
the server, holds the rows behind it back until it ends.

The bare transaction id would turn changes of one item around: a transaction may get its id first, and change
the item only after a later one has changed it and committed. So a stamp is never below that of the item's
change before; of equal ones the row id decides, which ascends as each change waits for the row's lock. A
stamp is at least its own transaction's id, so the argument above still holds. It is a Lamport clock.

Sources: PostgreSQL manual, "Transaction ID and Snapshot Information Functions" (all transaction ids less than
xmin are either committed and visible, or rolled back and dead); L. Lamport, "Time, Clocks, and the Ordering
of Events in a Distributed System", 1978.

A position is always that of a row, never a bare xmin: a transaction id that was given out but never reached
the disk can be given out again after the server crashed, a committed row's cannot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

import asyncpg

from freeloop.database import Database
from freeloop.errors import Unprocessable

CHANNEL: Final = "item_changes"
# At most 18 digits, so that each number is a bigint.
CURSOR_PATTERN: Final = r"^(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})$"
_CURSOR: Final = re.compile(CURSOR_PATTERN[1:-1])

Kind = Literal["insert", "update", "delete", "reset"]


class Cursor(NamedTuple):
    """A position in the change log: that of the last change which was seen.

    Args:
        stamp: The change's stamp.
        id: The change's own id.
    """

    stamp: int
    id: int

    def __str__(self) -> str:
        return f"{self.stamp}-{self.id}"


ORIGIN: Final = Cursor(0, 0)


def parse_cursor(text: str) -> Cursor:
    """Read what ``str(cursor)`` wrote.

    Raises:
        Unprocessable: It is something else.
    """
    if match := _CURSOR.fullmatch(text):
        return Cursor(int(match[1]), int(match[2]))
    raise Unprocessable(
        "Last-Event-ID is not a position on this stream",
        f"Last-Event-ID must be the id of an event of this stream, such as 742-19; it was {text[:100]!r}. "
        "Leave it out to begin with the next change.",
    )


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one item, or word that some were missed.

    Args:
        cursor: Its position; the id to resume from.
        kind: What happened; ``reset`` where changes were missed that are no longer in the log.
        item_id: Which item; 0 for a reset.
        data: As JSON, rendered once for all who read it.
    """

    cursor: Cursor
    kind: Kind
    item_id: int
    data: str


@dataclass(frozen=True, slots=True)
class LogPage:
    """What one look at the log found.

    Args:
        changes: In the order of their positions.
        full: Whether there may be more right behind them.
        pending: Whether committed changes wait for an older transaction to end.
        horizon: The last position that was pruned.
        last: The last readable position, the horizon where the log is empty.
    """

    changes: list[Change]
    full: bool
    pending: bool
    horizon: Cursor
    last: Cursor


# One statement, so one snapshot: horizon, end and rows belong together, whatever is pruned meanwhile. The
# left joins yield one row even without a change. Each part is a walk along the primary key; "exists" would
# not be, since the planner expects to find a match early in the table.
READ_LOG: Final = """
with now as materialized (select pg_snapshot_xmin(pg_current_snapshot()) as xmin)
select
    horizon.stamp, horizon.id, last.stamp, last.id,
    newest.stamp >= now.xmin,
    change.stamp, change.id, change.kind, change.item_id, change.item,
    to_char(change.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
from now
cross join item_changes_horizon as horizon
left join lateral (
    select stamp from item_changes order by stamp desc, id desc limit 1
) as newest on true
left join lateral (
    select stamp, id from item_changes where stamp < now.xmin order by stamp desc, id desc limit 1
) as last on true
left join lateral (
    select stamp, id, kind, item_id, item::text as item, at from item_changes
    where (stamp, id) > ($1::xid8, $2::bigint) and stamp < now.xmin
    order by stamp, id limit $3
) as change on true
order by change.stamp, change.id
"""


async def read_log(database: Database, after: Cursor, *, limit: int) -> LogPage:
    """Read the changes behind ``after`` that nothing can come before any more.

    Args:
        database: Where from.
        after: The last position that was seen.
        limit: How many at most; 0 to learn only where the log ends.
    """
    rows = await database.fetch(READ_LOG, after.stamp, after.id, limit)
    first = rows[0]
    horizon = Cursor(first[0], first[1])
    last = horizon if first[2] is None else Cursor(first[2], first[3])
    changes = [_change(row) for row in rows if row[5] is not None]
    return LogPage(changes, len(changes) == limit > 0, bool(first[4]), horizon, max(last, horizon))


def reset_at(cursor: Cursor, reason: str) -> Change:
    """Return the event that tells a reader to read all items again and to go on from ``cursor``."""
    at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return Change(cursor, "reset", 0, f'{{"reason":"{reason}","at":"{at}"}}')


def _change(row: asyncpg.Record) -> Change:
    stamp, change_id, kind, item_id, item, at = row[5:]
    # The parts are JSON already; `item` is one line, since JSON escapes line breaks in strings.
    return Change(
        Cursor(stamp, change_id), kind, item_id, f'{{"id":{item_id},"item":{item or "null"},"at":"{at}"}}'
    )
