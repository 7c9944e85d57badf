"""Freeloop: async FastAPI services that stay async.

From the ground up: ``errors``, ``settings``, ``records``, ``scope``; on them ``database``, ``outbound`` and
``threads``; in front of them the ``gate``; around them the ``kit``, which opens and closes everything; on top
the ``service`` that ``freeloop serve`` runs, and the command line.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from freeloop.gate.declare import deadline, finish, priority
from freeloop.scope import Scope, current_scope

if TYPE_CHECKING:
    from freeloop.kit import Freeloop

__all__ = ["Freeloop", "Scope", "__version__", "current_scope", "deadline", "finish", "priority"]
__version__ = version("freeloop")


def __getattr__(name: str) -> Any:  # noqa: ANN401 - as the interpreter wants it
    # Loaded when it is asked for: the command line answers --help without it.
    if name == "Freeloop":
        from freeloop.kit import Freeloop  # noqa: PLC0415 - as above

        return Freeloop
    raise AttributeError(f"module 'freeloop' has no attribute '{name}'")
