"""What our tests run on, for yours too: a real PostgreSQL, a database per test, no blocking of the loop.

And a network that fails on purpose, in front of any server. Needs pytest, anyio's pytest plugin and
blockbuster, which Freeloop itself does not install. Put ``pytest_plugins = ["freeloop.testing.plugin"]`` in
the root ``conftest.py``. No room imports it.
"""

from freeloop.testing.blocking import no_blocking
from freeloop.testing.network import Fault, FaultyNetwork, plan_faults
from freeloop.testing.servers import OwnServer
from freeloop.testing.waiting import eventually

__all__ = ["Fault", "FaultyNetwork", "OwnServer", "eventually", "no_blocking", "plan_faults"]
