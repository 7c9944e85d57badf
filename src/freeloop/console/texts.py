"""The words of the console: one catalogue a language, and how numbers are said."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from freeloop.console.phrases import Phrases
from freeloop.tree.waits import say_seconds

LANGUAGES: Final[Mapping[str, str]] = {"en": "English", "zh-TW": "繁體中文"}
"""The name of each in itself."""

_FOLDER: Final = Path(__file__).parent / "catalogue"


class Texts:
    """The words of one language.

    Args:
        language: A key of :data:`LANGUAGES`.
        texts: By key, such as ``now.title``.

    Attributes:
        say: Says a sentence of another room, by its part: ``t.say("waits", "a timer")``.
    """

    def __init__(self, language: str, texts: Mapping[str, str]) -> None:
        self.language = language
        self._texts = texts
        self.say = Phrases(texts).say

    def __call__(self, key: str, /, **values: object) -> str:
        """Return a text with its values; those under names that end in ``seconds`` become durations."""
        said = {
            name: say_seconds(value)
            if name.endswith("seconds") and isinstance(value, int | float)
            else f"{value:,}"
            if isinstance(value, int) and name != "process"
            else value
            for name, value in values.items()
        }
        return self._texts[key].format(**said)

    def known(self, key: str, otherwise: str) -> str:
        """Return a text, or what stands for one that there is none of."""
        return self._texts.get(key, otherwise)


def load_texts(language: str) -> Texts:
    """Read a catalogue. Blocks."""
    found = tomllib.loads((_FOLDER / f"{language}.toml").read_text("utf-8"))
    return Texts(
        language, {f"{part}.{key}": text for part, texts in found.items() for key, text in texts.items()}
    )


def choose_language(chosen: str | None, accepted: str) -> str:
    """Return the language of a page.

    Args:
        chosen: What its reader has chosen; None: nothing.
        accepted: The header ``Accept-Language``.
    """
    if chosen is not None and chosen in LANGUAGES:
        return chosen
    first = accepted.partition(",")[0].strip().lower()
    return "zh-TW" if first.startswith(("zh-tw", "zh-hant", "zh-hk")) else "en"


def say_time(at: float | datetime | None) -> str:
    """Say a time of today, UTC."""
    if at is None:
        return "–"
    moment = datetime.fromtimestamp(at, UTC) if isinstance(at, int | float) else at.astimezone(UTC)
    return f"{moment:%H:%M:%S}"


def say_number(value: float | None) -> str:
    """Say a number with its thousands apart."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.2g}"
