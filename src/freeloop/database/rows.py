"""Rows as the caller's own types."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import asyncpg
from pydantic import BaseModel

T = TypeVar("T")


def shape_of(kind: type[T]) -> Callable[[asyncpg.Record], T]:
    """Return the function that makes a ``kind`` out of a row.

    Args:
        kind: A Pydantic model, which validates the row's columns by name; or a dataclass or ``NamedTuple``,
            which takes them as PostgreSQL's types came, by name.

    Raises:
        TypeError: It is none of these.
    """
    if issubclass(kind, BaseModel):
        return lambda row: kind.model_validate(dict(row))
    if dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return lambda row: kind(**dict(row))
    raise TypeError(f"into= expects a Pydantic model, a dataclass or a NamedTuple; got {kind!r}")
