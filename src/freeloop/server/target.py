"""Finds the app that ``freeloop run`` is told to run."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette

from freeloop.errors import StartError
from freeloop.kit import Freeloop

logger = logging.getLogger("freeloop")
_FILES: Final = ("main.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py")
_NAMES: Final = ("app", "api")


def load_app(target: str | None, *, app_dir: str, factory: bool) -> Any:  # noqa: ANN401 - any ASGI app
    """Import the app.

    Args:
        target: ``module:attribute``, ``module``, ``path/to/file.py`` or ``path/to/file.py:attribute``; None
            takes ``main.py``, ``app.py`` or ``api.py``, here or in ``app/``. Without an attribute: ``app``,
            ``api``, or the only FastAPI or Starlette app of the module.
        app_dir: The folder that modules are looked up in.
        factory: Whether the attribute is a function that returns the app.

    Raises:
        StartError: There is no such module or attribute. What the module itself raises is raised as it is.
    """
    path, attribute = _split(target or _find_file(Path(app_dir)))
    if not path or path.startswith("."):
        raise StartError(f"expected module:attribute, such as main:app, or a file; got '{target}'")
    sys.path.insert(0, str(Path(app_dir).resolve()))
    name = _module_name(Path(path)) if path.endswith(".py") else path
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise  # the module is there, and misses another
        raise StartError(
            f"there is no module '{name}' (looked in {Path(app_dir).resolve()}). Expected module:attribute, "
            "such as main:app, or a file, such as main.py; --app-dir looks elsewhere."
        ) from None
    found = _find_attribute(module, attribute) if attribute else _find_app(module)
    if factory or _makes_app(found):
        found = _call_factory(found, attribute or name, announced=factory)
    if not _is_asgi(found):
        raise StartError(
            f"expected an ASGI app at '{target or path}', async with scope, receive and send; "
            f"found {type(found).__name__}"
        )
    return found


def find_kit(app: object) -> Freeloop | None:
    """Return the kit that an app has already; None: it has none."""
    kit = getattr(getattr(app, "state", None), "freeloop", None)
    return kit if isinstance(kit, Freeloop) else None


def _makes_app(found: Any) -> bool:  # noqa: ANN401 - as above
    """Whether this is a function that needs no argument, so no app; uvicorn calls it, too."""
    if not inspect.isfunction(found):
        return False
    needed = [each for each in inspect.signature(found).parameters.values() if each.default is each.empty]
    return all(each.kind in {each.VAR_POSITIONAL, each.VAR_KEYWORD} for each in needed)


def _call_factory(found: Any, name: str, *, announced: bool) -> Any:  # noqa: ANN401 - as above
    if not announced:
        logger.warning("'%s' is a function that makes the app; say so with --factory", name)
    elif not callable(found) or _is_asgi(found):
        raise StartError(
            f"--factory expects a function without arguments at '{name}'; found an app or no function"
        )
    return found()


def _is_asgi(found: Any) -> bool:  # noqa: ANN401 - as above
    """Whether this is an app of ASGI 3, as uvicorn tells it from the older kinds."""
    if inspect.isclass(found):
        return hasattr(found, "__await__")
    return inspect.iscoroutinefunction(found) or (
        callable(found) and inspect.iscoroutinefunction(type(found).__call__)
    )


def _split(target: str) -> tuple[str, str]:
    # Not at the colon of a drive letter.
    head, colon, attribute = target.rpartition(":")
    if not colon or "/" in attribute or "\\" in attribute:
        return target, ""
    return head, attribute


def _find_file(folder: Path) -> str:
    for name in _FILES:
        if (folder / name).is_file():
            return str(folder / name)
    raise StartError(
        f"no app was named, and none of {', '.join(_FILES)} is in {folder.resolve()}. "
        "Expected module:attribute, such as main:app, or a file."
    )


def _module_name(path: Path) -> str:
    """Make a file importable, and return its module's name: packages begin above the last __init__.py."""
    if not path.is_file():
        raise StartError(f"there is no file {path.resolve()}")
    path = path.resolve()
    names = [] if path.stem == "__init__" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    sys.path.insert(0, str(folder))
    return ".".join(names)


def _find_attribute(module: object, attribute: str) -> Any:  # noqa: ANN401 - as above
    found = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise StartError(
                f"the module '{getattr(module, '__name__', '?')}' has no '{attribute}'"
            ) from None
    return found


def _find_app(module: object) -> Any:  # noqa: ANN401 - as above
    for name in _NAMES:
        if callable(found := getattr(module, name, None)):
            return found
    apps = {name: value for name, value in vars(module).items() if isinstance(value, Starlette)}
    if len(apps) != 1:
        raise StartError(
            f"the module '{getattr(module, '__name__', '?')}' has "
            f"{'no app' if not apps else 'several apps: ' + ', '.join(apps)}. Expected module:attribute."
        )
    return next(iter(apps.values()))
