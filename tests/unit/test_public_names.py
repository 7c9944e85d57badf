"""What ``from freeloop import …`` gives, and when it is loaded."""

import subprocess
import sys

import pytest

import freeloop

PROGRAM = """
import sys
import freeloop
late = {"freeloop.kit", "freeloop.dependencies", "freeloop.database", "asyncpg"}
assert not late & sys.modules.keys(), late & sys.modules.keys()
from freeloop import *
assert {*freeloop.__all__} <= globals().keys()
assert Db.__origin__.__name__ == "Database" and Outbound.__origin__.__name__ == "Client"
"""


def test_all_names_are_there_and_the_kit_is_loaded_late():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_any_other_name_is_refused():
    with pytest.raises(AttributeError, match="'freeloop' has no attribute 'Database'"):
        _ = freeloop.Database
