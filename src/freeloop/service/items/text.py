"""Text as PostgreSQL and UTF-8 can hold it; anything else is the caller's mistake, never a 500."""

from __future__ import annotations

from typing import Final

from pydantic import AfterValidator, Field


def _refuse_unstorable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character (U+0000), which PostgreSQL cannot store")
    try:
        text.encode()
    except UnicodeEncodeError as mistake:
        raise ValueError(
            f"must not contain a lone surrogate (U+{ord(text[mistake.start]):04X}), which is not Unicode text"
        ) from None
    return text


# The bounds of a length belong before it in an annotation: behind it, Pydantic calls characters items.
STORABLE: Final = AfterValidator(_refuse_unstorable)
# A generator that reads the schema must not send what the validator refuses.
NO_NUL: Final = Field(json_schema_extra={"pattern": r"^[^\x00]*$"})
