"""Freeloop: async FastAPI services that stay async.

From the ground up: ``errors``, ``settings``, ``records``, ``scope``; on them ``database``, ``outbound`` and
``threads``; in front of them the ``gate``; around them the ``kit``, which opens and closes everything, and
what routes get of it; on top the ``service`` that ``freeloop serve`` runs, and the command line.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from freeloop.gate.declare import deadline, finish, priority
from freeloop.scope import Scope, current_scope
from freeloop.source import Source

if TYPE_CHECKING:
    from freeloop.dependencies import Db, GuardedOutbound, Outbound
    from freeloop.kit import Freeloop

__all__ = [
    "Db",
    "Freeloop",
    "GuardedOutbound",
    "Outbound",
    "Scope",
    "Source",
    "__version__",
    "current_scope",
    "deadline",
    "finish",
    "priority",
]
__version__ = version("freeloop")

# Loaded when they are asked for: the command line answers --help without them.
_LATE = {
    "Db": "freeloop.dependencies",
    "Freeloop": "freeloop.kit",
    "GuardedOutbound": "freeloop.dependencies",
    "Outbound": "freeloop.dependencies",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - as the interpreter wants it
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module 'freeloop' has no attribute '{name}'")
