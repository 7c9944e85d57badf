"""docs/reference/api.md: what an app may import, with its docstrings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import griffe

from handbook.markdown import code, page, prose, table
from handbook.undocumented import say

# What `__all__` of these names is what an app may rely on.
PUBLIC: Final = (
    "freeloop",
    "freeloop.dependencies",
    "freeloop.database",
    "freeloop.outbound",
    "freeloop.outbound.httpx_transport",
    "freeloop.tasks",
    "freeloop.watch",
    "freeloop.testing",
)
INTRODUCTION: Final = (
    "What an app may import. Names that are not here, and those with a leading underscore, may change "
    "without notice. The [errors](errors.md) have a page of their own."
)
_SOURCE: Final = Path(__file__).parents[1] / "src"
_WHERE: Final = "give it a docstring"
_SECTIONS: Final = {"parameters": "Argument", "attributes": "Attribute", "raises": "Raises"}


def render(modules: Sequence[str] = PUBLIC, source: Path = _SOURCE) -> str:
    """Return the page.

    Raises:
        Undocumented: A name, or a method or property of a class, has no docstring.
    """
    return page(
        "Public API", INTRODUCTION, *(part for name in modules for part in _describe_module(name, source))
    )


def list_names(modules: Sequence[str] = PUBLIC, source: Path = _SOURCE) -> set[str]:
    """Return all public names, as they are imported."""
    return {f"{name}.{member}" for name in modules for member, _ in _members(_load(name, source))}


@cache
def _load_package(package: str, source: Path) -> griffe.Module:
    # Read and not imported: what a name shows then does not depend on the Python that runs this.
    loaded = griffe.load(
        package,
        search_paths=[source],
        docstring_parser="google",
        docstring_options={"warnings": False},  # of types in docstrings: ours are in the annotations
        resolve_aliases=True,
    )
    if not isinstance(loaded, griffe.Module):
        raise TypeError(f"expected a package at '{package}', found {loaded!r}")
    return loaded


def _load(name: str, source: Path) -> griffe.Module:
    package, _, inner = name.partition(".")
    loaded = _load_package(package, source)
    return loaded[inner] if inner else loaded


def _members(module: griffe.Module) -> Iterator[tuple[str, Any]]:
    """Yield what ``__all__`` names; without it, what is public and made here."""
    for name, member in module.members.items():
        if module.exports is not None:
            public = name in module.exports
        else:
            public = not name.startswith("_") and not member.is_alias and not member.is_module
        if public and name != "__version__":
            yield name, _resolve(module, name)


def _resolve(module: griffe.Module, name: str) -> Any:  # noqa: ANN401 - a class, a function or an attribute
    member = module.members[name]
    if module.path == "freeloop" and not member.is_alias and member.is_attribute:  # one that is loaded late
        return module["dependencies"].members[name]
    return member.final_target if member.is_alias else member  # type: ignore[union-attr]  # it is one then


def _describe_module(name: str, source: Path) -> Iterator[str]:
    yield f"## `{name}`"
    for member, found in sorted(_members(_load(name, source)), key=lambda each: each[0].lower()):
        yield f"### `{name}.{member}`"
        yield from _describe(member, found)
        if found.is_class:
            for inner, each in _methods(found):
                yield f"#### `{member}.{inner}`"
                yield from _describe(inner, each)


def _methods(kind: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - griffe's class
    for name, member in kind.members.items():
        documented_by_class = member.is_attribute and "property" not in member.labels
        if not name.startswith("_") and not documented_by_class:
            yield name, member


def _describe(name: str, found: Any) -> Iterator[str]:  # noqa: ANN401 - as above
    if found.is_function:
        prefix = "async " if "async" in found.labels else ""
        yield f"```text\n{prefix}{found.signature()}\n```"
    elif found.is_class and "__init__" in found.members:
        made = found.members["__init__"].signature().removeprefix("__init__").removesuffix(" -> None")
        yield f"```text\n{name}{made}\n```"
    said = found.docstring
    say(said and said.value, f"the public name {found.path}", _WHERE)
    for section in said.parsed:
        if section.kind.value == "text":
            yield prose(section.value)
        elif section.kind.value in _SECTIONS:
            rows = [[_name(each), prose(each.description)] for each in section.value]
            yield table([_SECTIONS[section.kind.value], ""], rows)
        elif section.kind.value in {"returns", "yields"}:
            yield f"{section.kind.value.capitalize()}: " + prose(
                " ".join(each.description for each in section.value)
            )
        elif section.kind.value == "admonition":
            yield f"{section.title or section.value.annotation}: {prose(section.value.contents)}"
        else:
            raise TypeError(f"{found.path}: no way is known to show the section '{section.kind.value}'")


def _name(element: Any) -> str:  # noqa: ANN401 - of several kinds of sections
    return code(getattr(element, "name", None) or element.annotation)
