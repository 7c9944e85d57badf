"""The header ``Idempotency-Key`` (IETF draft "The Idempotency-Key HTTP Header Field"), as a dependency."""

# Annotations are not postponed: FastAPI could not find there what a function has around it.
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Request
from pydantic.json_schema import SkipJsonSchema

from freeloop.errors import Unprocessable

# Spaces at the ends do not count: HTTP strips them from every header.
KEY_PATTERN: Final = r"^[!-~]([ -~]{0,253}[!-~])?$"
_HEADER: Final = "Idempotency-Key"


def idempotency_key(means: str) -> Any:  # noqa: ANN401 - what Depends returns
    """Return a dependency that gives the header's value, or None.

    Args:
        means: What a retry with the same key comes to, for the documentation.
    """

    async def read(
        request: Request,
        key: Annotated[
            str | SkipJsonSchema[None],
            Header(
                alias=_HEADER,
                pattern=KEY_PATTERN,
                max_length=255,
                description=f"1–255 printable ASCII characters. {means}",
            ),
        ] = None,
    ) -> str | None:
        if len(request.headers.getlist(_HEADER)) > 1:
            raise Unprocessable(f"{_HEADER} was sent more than once", "Send one key per request.")
        return key

    return Depends(read)
