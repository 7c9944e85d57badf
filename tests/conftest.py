"""Every test runs on uvloop, and under the detector for calls that block the loop."""

import pytest

from freeloop.testing import no_blocking

pytest_plugins = ["freeloop.testing.plugin", "service_process", "tls_servers"]


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def _no_blocking():
    with no_blocking():
        yield
