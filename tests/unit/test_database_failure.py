"""What PostgreSQL's errors become."""

import asyncpg
import pytest

from freeloop.database.failure import statement_failure
from freeloop.errors import DatabaseUnavailable


@pytest.mark.parametrize("error", [asyncpg.DiskFullError, asyncpg.OutOfMemoryError])
def test_a_server_that_has_run_out_of_resources_is_503_and_says_of_what(error):
    ours = statement_failure(error("could not extend file"), closed=False, name="main", limit=None)
    assert isinstance(ours, DatabaseUnavailable)
    assert ours.status == 503
    assert "Retry-After" in ours.headers
    assert "could not extend file" in ours.detail
