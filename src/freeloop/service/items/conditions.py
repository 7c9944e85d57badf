"""Entity tags and the conditions on them (RFC 9110, sections 8.8.3 and 13.1). Pure: it reads no request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from freeloop.errors import Unprocessable
from freeloop.service.items.model import LARGEST_ID

_TAG: Final = r'(?:W/)?"[\x21\x23-\x7E\x80-\xFF]*"'
# Empty elements of a list do not count (section 5.6.1.2).
CONDITION_PATTERN: Final = rf"^(\*|[ \t,]*{_TAG}([ \t]*,[ \t,]*{_TAG})*[ \t,]*)$"
_CONDITION: Final = re.compile(CONDITION_PATTERN[1:-1])
_EACH_TAG: Final = re.compile(_TAG)


@dataclass(frozen=True, slots=True)
class Condition:
    """What ``If-Match`` or ``If-None-Match`` names.

    Args:
        any: Whether it was ``*``.
        strong: The strong tags' revisions.
        weak: The weak tags' revisions.
    """

    any: bool
    strong: frozenset[int] = frozenset()
    weak: frozenset[int] = frozenset()

    def revisions(self) -> list[int] | None:
        """Return those that ``If-Match`` allows, None for all.

        Only strong tags: a weak one says that two versions are as good as each other, which is not
        enough to overwrite one (section 13.1.1).
        """
        return None if self.any else sorted(self.strong)

    def has(self, revision: int) -> bool:
        """Tell whether ``If-None-Match`` names this revision; weak tags count (section 13.1.2)."""
        return self.any or revision in self.strong or revision in self.weak


def render_tag(revision: int) -> str:
    """Return the entity tag of a revision."""
    return f'"{revision}"'


def parse_condition(header: str, values: list[str]) -> Condition | None:
    """Read a condition.

    Args:
        header: Its name, for the error.
        values: One per header line; an empty list for a header that was not sent.

    Returns:
        None where the header was not sent.

    Raises:
        Unprocessable: It is neither ``*`` nor a list of entity tags.
    """
    if not values:
        return None
    text = ", ".join(values).strip(" \t")
    if not _CONDITION.fullmatch(text):
        raise Unprocessable(
            f"{header} is malformed",
            f'{header} must be * or entity tags such as "3" in double quotes, separated by commas; '
            f"it was {text[:200]!r}. Send back the ETag of the answer as it came.",
        )
    if text == "*":
        return Condition(any=True)
    tags = _EACH_TAG.findall(text)
    return Condition(
        any=False,
        strong=frozenset(_revisions([tag for tag in tags if not tag.startswith("W/")])),
        weak=frozenset(_revisions([tag[2:] for tag in tags if tag.startswith("W/")])),
    )


def _revisions(tags: list[str]) -> list[int]:
    # A tag that we never gave out matches nothing.
    found = [int(tag[1:-1]) for tag in tags if re.fullmatch(r'"[1-9][0-9]{0,18}"', tag)]
    return [revision for revision in found if revision <= LARGEST_ID]
