"""The database room: a pool of asyncpg connections, transactions, notifications and migrations.

Rooms above import it; it imports ``errors`` only. ``embedded`` keeps a server, and knows no pool.
"""

from freeloop.database.address import Address, ServerPort
from freeloop.database.listen import Notification
from freeloop.database.pool import Database
from freeloop.database.queries import Queries
from freeloop.database.statements import Statement, Statements
from freeloop.database.transaction import Transaction

__all__ = [
    "Address",
    "Database",
    "Notification",
    "Queries",
    "ServerPort",
    "Statement",
    "Statements",
    "Transaction",
]
