"""Freeloop: async FastAPI services that stay async.

From the ground up: ``errors``, ``settings``, ``records``, ``scope``; on them ``database``, ``outbound`` and
``threads``; in front of them the ``gate``; around them the ``kit``, which opens and closes everything; on top
the ``service`` that ``freeloop serve`` runs, and the command line.
"""

from importlib.metadata import version

from freeloop.scope import Scope, current_scope

__all__ = ["Scope", "__version__", "current_scope"]
__version__ = version("freeloop")
