"""Every test runs on uvloop, and under the detector for calls that block the loop."""

import gc

import pytest
from hypothesis import settings

from freeloop.testing import no_blocking

pytest_plugins = [
    "freeloop.testing.plugin",
    "service_process",
    "installed",
    "tls_servers",
    "pgbouncer",
    "streaming_replica",
    "task_rooms",
]

# A machine that does something else for a moment is no mistake of the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_finish():
    """Let the collector pass over all that is loaded: looking through it blocks a test's loop for long."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def _no_blocking():
    with no_blocking():
        yield
