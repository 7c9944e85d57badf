"""docs/reference/errors.md."""

from __future__ import annotations

import re
from types import ModuleType

from freeloop import errors
from freeloop.errors import FreeloopError
from handbook.markdown import code, page, prose, table
from handbook.undocumented import say

INTRODUCTION = (
    "`from freeloop.errors import …`. A route that raises one is answered with its status, as a problem "
    "document; [Errors](../errors.md) says what to do about each. `detail` says what was expected "
    "and what came."
)


def render(module: ModuleType = errors) -> str:
    """Return the page.

    Raises:
        Undocumented: An error says nothing of itself, or is missing in the drawn tree.
    """
    words = re.sub(r"(?m)^ {4}", "", module.__doc__ or "")
    tree = re.search(r"^(FreeloopError.*?)\n\n", words, re.MULTILINE | re.DOTALL)
    drawn = say(tree and tree[1], "the tree of errors", "draw it in the docstring of freeloop.errors")
    rows = []
    for name, kind in vars(module).items():
        if not (isinstance(kind, type) and issubclass(kind, FreeloopError)):
            continue
        if not re.search(rf"\b{name}\b", drawn):
            say(
                "",
                f"the place of {name} in the tree of errors",
                "draw it in the docstring of freeloop.errors",
            )
        said = say(vars(kind).get("__doc__"), f"the error {name}", "give its class a docstring")
        rows.append([code(name), str(kind.status), kind.title, prose(said.partition("\n\n")[0])])
    return page(
        "Errors", INTRODUCTION, f"```text\n{drawn}\n```", table(["Error", "Status", "Title", "When"], rows)
    )
