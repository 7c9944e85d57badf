"""What is raised where something of the code has no words."""

from __future__ import annotations


class Undocumented(Exception):
    """Something has no description.

    Args:
        what: Such as ``the setting FREELOOP_PORT``.
        where: What to write, and where.
    """

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} is not documented: {where}")


def say(text: str | None, what: str, where: str) -> str:
    """Return a description, or refuse to go on without one.

    Raises:
        Undocumented: There is none.
    """
    if text is None or not text.strip():
        raise Undocumented(what, where)
    return text.strip()
