"""What our tests run on, for yours too: a real PostgreSQL, a database per test, no blocking of the loop.

And a network that fails on purpose, in front of any server, and an upstream that does. Needs pytest,
anyio's pytest plugin and blockbuster, which Freeloop itself does not install. Put
``pytest_plugins = ["freeloop.testing.plugin"]`` in the root ``conftest.py``. No room imports it.
"""

from freeloop.testing.blocking import no_blocking
from freeloop.testing.faults import Fault, plan_faults
from freeloop.testing.network import FaultyNetwork
from freeloop.testing.own_server import OwnServer
from freeloop.testing.upstream import FaultyUpstream
from freeloop.testing.waiting import eventually

__all__ = [
    "Fault",
    "FaultyNetwork",
    "FaultyUpstream",
    "OwnServer",
    "eventually",
    "no_blocking",
    "plan_faults",
]
