"""The database room: a pool of asyncpg connections, transactions, notifications and migrations.

Rooms above import it; it imports ``errors``, ``scope``, ``metrics`` and ``records``. ``embedded`` keeps a
server, and knows no pool.
"""

from freeloop.database.address import Address, ServerPort
from freeloop.database.budget import Budget, check_budget
from freeloop.database.database import Database
from freeloop.database.listen import Notification
from freeloop.database.queries import Queries
from freeloop.database.reads import Reader
from freeloop.database.statements import Statement, Statements
from freeloop.database.transaction import Transaction

__all__ = [
    "Address",
    "Budget",
    "Database",
    "Notification",
    "Queries",
    "Reader",
    "ServerPort",
    "Statement",
    "Statements",
    "Transaction",
    "check_budget",
]
