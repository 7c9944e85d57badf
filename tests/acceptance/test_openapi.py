"""Schemathesis over the running service: no 5xx, no undocumented status, no answer outside its schema."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOKEN = "a-token-for-schemathesis"  # noqa: S105 - a test secret
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


@pytest.mark.timeout(300)
def test_no_request_breaks_the_documented_api(start, tmp_path):
    service = start(FREELOOP_TOKEN=TOKEN)
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{service.url}/openapi.json"),
            # An endless stream has no end to wait for; tests/postgres reads it.
            *("--exclude-path", "/items/changes"),
            # Valid by the schema but refused all the same: an If-Match that is no longer current, a source
            # that is not configured.
            *("--exclude-checks", "positive_data_acceptance"),
            *("--checks", "all", "--header", f"Authorization: Bearer {TOKEN}"),
            *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "30"),
            *("--seed", "1", "--generation-database", "none", "--request-timeout", "20", "--no-color"),
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert service.stop() == 0
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
