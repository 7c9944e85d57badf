"""Which line of a stack is yours: the one to change. Pure."""

from __future__ import annotations

import os
import site
import sysconfig
from pathlib import Path
from typing import Final, Literal, TypeAlias

from freeloop.ownership import tell_apps
from freeloop.watch.stack import Line, Stack

Owner: TypeAlias = Literal["app", "library", "framework", "python"]


def _roots(*folders: str | None) -> tuple[str, ...]:
    found = {os.path.join(os.path.realpath(folder), "") for folder in folders if folder}  # noqa: PTH118 - a prefix with its slash
    found |= {os.path.join(folder, "") for folder in folders if folder}  # noqa: PTH118 - as above
    return tuple(found)


_paths = sysconfig.get_paths()
_LIBRARIES: Final = _roots(
    _paths["purelib"], _paths["platlib"], *site.getsitepackages(), site.getusersitepackages()
)
_PYTHON: Final = _roots(_paths["stdlib"], _paths["platstdlib"])
_OURS: Final = _roots(str(Path(__file__).parents[1]))
_is_apps: Final = tell_apps()


def own(file: str) -> Owner:
    """Return whose file it is."""
    if file.startswith(_OURS):
        return "app" if _is_apps(name_module(file)) else "framework"
    if file.startswith(_LIBRARIES):
        return "library" if _is_apps(name_module(file)) else "framework"
    if file.startswith((*_PYTHON, "<frozen")):
        return "python"
    return "app"


def name_module(file: str) -> str:
    """Return the dotted name of a module of ours, of a library or of Python; empty for others."""
    for package, roots in (("freeloop.", _OURS), ("", _LIBRARIES), ("", _PYTHON)):
        for root in roots:
            if file.startswith(root):
                path = file[len(root) :].removesuffix(".py").removesuffix("/__init__")
                return package + path.replace("/", ".")
    return ""


def find_place(stack: Stack) -> Line | None:
    """Return the innermost line of the app's own code.

    An app that is installed as a package lies among the libraries: there it is the first one that the
    framework calls, down to its innermost line. Where nothing is the app's, it is the innermost line of a
    library, of the framework, of Python.
    """
    for line in stack:
        if own(line.file) == "app":
            return line
    owners = [own(line.file) for line in stack]
    if "framework" in owners and "library" in owners[: owners.index("framework")]:
        called = max(index for index in range(owners.index("framework")) if owners[index] == "library")
        package = name_module(stack[called].file).partition(".")[0]
        return next(line for line in stack if name_module(line.file).partition(".")[0] == package)
    for owner in ("library", "framework", "python"):
        if owner in owners:
            return stack[owners.index(owner)]
    return None
