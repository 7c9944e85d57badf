"""What an item looks like, as it comes and as it goes; the bounds are those of the table's constraints."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from freeloop.service.items.text import NO_NUL, STORABLE

LARGEST_ID: Final = 2**63 - 1
"""PostgreSQL's largest bigint."""

_PRICE_PATTERN: Final = r"^(0|[1-9][0-9]{0,9})(\.[0-9]{1,2})?$"
_PRICE: Final = re.compile(_PRICE_PATTERN[1:-1], re.ASCII)


def _read_price(value: object) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if not isinstance(value, str):
        # 12.10 as a JSON number has been a binary float in some program on its way.
        raise ValueError(  # noqa: TRY004  # Pydantic turns only ValueError into a 422
            f'must be a string such as "12.50", not a {type(value).__name__}: numbers lose cents'
        )
    if not _PRICE.fullmatch(value):
        raise ValueError('must be from "0" to "9999999999.99" with at most two decimals, such as "12.50"')
    return Decimal(value)


Price = Annotated[
    Decimal,
    BeforeValidator(_read_price),
    WithJsonSchema({"type": "string", "pattern": _PRICE_PATTERN, "examples": ["12.50"]}),
]
Name = Annotated[str, Field(min_length=1, max_length=200), STORABLE, NO_NUL]
Description = Annotated[str, Field(max_length=10_000), STORABLE, NO_NUL]
Tag = Annotated[str, Field(min_length=1, max_length=50), STORABLE, NO_NUL]
Tags = Annotated[list[Tag], Field(max_length=20)]
ItemId = Annotated[int, Field(ge=1, le=LARGEST_ID)]


class NewItem(BaseModel):
    """An item to be created."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    description: Description | None = None
    price: Price
    tags: Tags = Field(default_factory=list)


class ItemPatch(BaseModel):
    """A JSON merge patch (RFC 7396): a field that is left out stays as it is.

    ``null`` clears the description; the other fields cannot be without a value. An empty patch changes
    nothing and answers the item as it is.
    """

    model_config = ConfigDict(extra="forbid")

    # The defaults are never read: only fields that were sent are written. A factory keeps them out of
    # the schema, where "default: null" would contradict the type.
    name: Name = Field(default_factory=str)
    description: Description | None = Field(default_factory=lambda: None)
    price: Price = Field(default_factory=Decimal)
    tags: Tags = Field(default_factory=list)

    def changes(self) -> dict[str, Any]:
        """Return the fields that were sent, by column."""
        return {field: getattr(self, field) for field in sorted(self.model_fields_set)}


class Item(BaseModel):
    """An item as it is answered. It documents the answer; the server renders it in SQL."""

    id: ItemId
    name: Name
    description: Description | None
    price: Price = Field(description="With two decimals, as a string, so that no cent is lost.")
    tags: Tags
    created_at: datetime = Field(description="UTC.")
    updated_at: datetime = Field(description="UTC.")


class ItemPage(BaseModel):
    """A part of the items, in the order of their ids."""

    items: list[Item]
    next: ItemId | None = Field(description="Send it as `after` for the next page; null on the last one.")


class ItemChange(BaseModel):
    """The data of one event on the change stream."""

    id: ItemId = Field(description="The item's id.")
    item: Item | None = Field(description="The item as it was after this change; null once deleted.")
    at: datetime = Field(description="When the change was written, UTC.")
