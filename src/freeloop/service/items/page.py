"""Which page of the items a request asks for: `limit` and `after`, read without FastAPI's solver.

The solver costs a request several times its share of a query that many callers share. What is accepted and
refused, and what the OpenAPI document says, is the same.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError

from freeloop.service.items.model import ItemId


class PageQuery(BaseModel):
    """The query of ``GET /items``."""

    limit: int = Field(50, ge=1, le=200, description="How many at most.")
    # 0: from the start. A factory keeps this, which nobody may send, out of the schema.
    after: ItemId = Field(default_factory=int, description="`next` of the page before.")


def read_query(request: Request) -> PageQuery:
    """Return what the request asks for.

    Raises:
        RequestValidationError: A parameter is no number, or out of its bounds.
    """
    # As request.query_params, which keeps more than one value of each name: the last one counts.
    given = dict(parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True))
    try:
        return PageQuery.model_validate(given)
    except ValidationError as mistake:
        raise RequestValidationError(
            [{**error, "loc": ("query", *error["loc"])} for error in mistake.errors(include_url=False)]
        ) from None


def _describe(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "schema": schema,
        "description": schema["description"],
    }


PARAMETERS: Final = [
    _describe(name, schema) for name, schema in PageQuery.model_json_schema()["properties"].items()
]
"""What OpenAPI says of them."""
