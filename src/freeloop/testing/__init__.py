"""What our tests run on, for yours too: a real PostgreSQL, a database per test, no blocking of the loop.

Needs pytest, anyio's pytest plugin and blockbuster, which Freeloop itself does not install. Put
``pytest_plugins = ["freeloop.testing.plugin"]`` in the root ``conftest.py``. No room imports it.
"""

from freeloop.testing.blocking import no_blocking
from freeloop.testing.servers import OwnServer
from freeloop.testing.waiting import eventually

__all__ = ["OwnServer", "eventually", "no_blocking"]
