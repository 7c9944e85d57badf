"""What several tests of the calls to external APIs use."""

import pytest

from freeloop.testing import FaultyUpstream


@pytest.fixture
async def upstream():
    """An upstream that fails as its paths and scripts say."""
    async with FaultyUpstream() as upstream:
        yield upstream
