"""Whose code a line is: all rooms say the same of a module."""

import sys
from pathlib import Path

import pytest

import freeloop
from freeloop import scope
from freeloop.tree.model import Place
from freeloop.watch.place import own

FOLDER = Path(freeloop.__file__).parent


def frame_of(module):
    found = []
    exec("found.append(look(0))", {"__name__": module, "found": found, "look": sys._getframe})  # noqa: S102
    return found[0]


@pytest.mark.parametrize(
    ("module", "apps"),
    [
        ("freeloop.service.items.routes", True),
        ("freeloop.service", True),
        ("shop.orders", True),
        ("__main__", True),
        ("", True),
        ("freeloop.tasks.client", False),
        ("freeloop.database.pool", False),
        ("freeloop", False),
        ("asyncio.tasks", False),
        ("contextlib", False),
        ("starlette.routing", False),
        ("uvicorn.protocols.http.httptools_impl", False),
    ],
)
def test_a_lease_and_the_tree_take_the_same_modules_for_the_apps(module, apps):
    assert scope.is_apps(frame_of(module)) is apps
    assert Place("file.py", 1, "function", module).is_apps is apps


@pytest.mark.parametrize(
    ("file", "owner"),
    [
        ("service/items/routes.py", "app"),
        ("service/__init__.py", "app"),
        ("tasks/client.py", "framework"),
        ("__init__.py", "framework"),
    ],
)
def test_the_watchdog_takes_the_reference_service_for_an_app(file, owner):
    assert own(str(FOLDER / file)) == owner
