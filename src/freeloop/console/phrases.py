"""What other rooms say in English, in another language: a sentence is known by the template that made it.

So logs, JSON, the command line and processes of another version say what they say, and no room knows of the
console. A sentence that no template has made stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from string import Formatter
from typing import Final

from freeloop.tree.lints import LINTS
from freeloop.tree.waits import CLAUSES, NAMES, PHRASES
from freeloop.watch.advice import ADVICE

ENGLISH: Final[Mapping[str, Mapping[str, str]]] = {
    "advice": ADVICE,
    "lints": LINTS,
    "clauses": CLAUSES,
    "waits": PHRASES,
    "names": {"comma": "{first}, {others}", **NAMES},
    # How freeloop.tree.functions describes what is waited for.
    "things": {
        "lent": "{thing} ({count} of {size} lent)",
        "busy": "{thing} ({count} of {size} busy)",
        "borrowed": "{thing} ({count} of {size} borrowed)",
        "bounded": "{thing} ({count} of {size} in it)",
        "unbounded": "{thing} ({count} in it)",
        "permits": "{thing} of {size}",
        "peer": "a pipe or socket",
        "descriptor": "descriptor {count}",
    },
}
"""The templates by part and key, as other rooms have them: ``part.key`` of a catalogue is the same."""

# What a field is itself said by.
_PARTS: Final = {
    "wait": "waits",
    "name": "things",
    **dict.fromkeys(("tasks", "holders", "holder", "names", "first", "others", "last"), "names"),
}
_FIELDS: Final = {
    **dict.fromkeys(("count", "size"), r"[\d,.]+|inf"),
    "lasted": r"\d[\d,.]* (?:ms|s|min|h)(?: \d+ (?:s|min))?",
    "place": r"\S+:\d+ in .+",
    "thing": r"\w+ 0x[0-9a-f]+|'.*'",
    "wait": ".+?",
    # Three names are enumerated at most: where there seem to be more, one only looks like it, and all stays.
    **dict.fromkeys(("names", "last"), r"(?:(?! and ).)+"),
    "first": r"[^,]+",
    "others": r"[^,]+(?:, [^,]+){0,2}",
}
_ALONE: Final = frozenset({"names.more", "names.two", "names.unknown"})  # tasks, and no words around them
_GAP: Final = re.compile(r"(?<=[^\x00-\x7f]) (?=[^\x00-\x7f])")  # Chinese has none between its words


class Phrases:
    """Says sentences of other rooms in one language.

    Args:
        texts: Its catalogue, by ``part.key``; a sentence that it has not stays English.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        # A look has thousands of waits, and few that differ.
        self.say = lru_cache(maxsize=2_000)(self._say)

    def _say(self, part: str, text: str) -> str:
        for pattern, key in _PATTERNS[part]:
            if key in self._texts and (found := pattern.fullmatch(text)):
                values = {
                    name: self.say(_PARTS[name], value) if name in _PARTS else value
                    for name, value in found.groupdict().items()
                }
                return _fill(self._texts[key], values)
        return text


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Put the values in, without a gap where Chinese meets Chinese; those within a value are the app's."""
    said = ""
    for literal, field, _, _ in Formatter().parse(template):
        for piece in (literal, values[field] if field else ""):
            said = said[:-2] + _GAP.sub("", said[-2:] + piece[:2]) + piece[2:]
    return said


def _list_patterns(part: str) -> Iterator[tuple[re.Pattern[str], str]]:
    """Yield how to know the sentences of a part; what says more comes before what says less."""
    templates = list(ENGLISH[part].items())
    if part == "waits":  # any of its names would match what is said around it
        yield from _list_patterns("clauses")
        templates.sort(key=lambda each: (each[1][0] == "{", -len(each[1])))
    for key, template in templates:
        if re.fullmatch(r"{\w+}", template):
            continue  # it is its name and nothing else
        pattern = "".join(
            re.escape(literal) + (f"(?P<{field}>{_FIELDS.get(field, '.+')})" if field else "")
            for literal, field, _, _ in Formatter().parse(template)
        )
        yield re.compile(pattern), f"{part}.{key}"
    if part == "waits":
        yield from (each for each in _list_patterns("names") if each[1] in _ALONE)


_PATTERNS: Final = {part: tuple(_list_patterns(part)) for part in ENGLISH}
