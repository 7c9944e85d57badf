"""Which reads are the same, so that one answer serves both. Where that cannot be told, they are not."""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Callable, Hashable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import FunctionType
from typing import Any, Final

from asyncpg.pgproto import pgproto

# Two values of one of these types are equal only where PostgreSQL is sent the same.
_EXACT: Final[frozenset[type]] = frozenset(
    {
        *(type(None), bool, int, str, bytes, date, timedelta, uuid.UUID, pgproto.UUID),
        *(ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Interface, ipaddress.IPv6Interface),
        *(ipaddress.IPv4Network, ipaddress.IPv6Network),
    }
)
_NUMBERS: Final = (float, Decimal)
_CLOCKS: Final = (datetime, time)
_SEQUENCES: Final = (list, tuple, set, frozenset)


def identify(sql: str, args: tuple[object, ...], encode: Callable[..., Any] | None) -> Hashable | None:
    """Return what is equal for two reads only where one answer serves both; None where that cannot be told.

    Args:
        sql: the statement.
        args: its arguments. Equal numbers of different types, and decimals and times that are equal but
            written differently, are not the same: PostgreSQL may answer them differently.
        encode: what makes the answer out of the rows.
    """
    try:
        arguments = args if is_exact(args) else tuple(map(_freeze, args))
        key = (sql, tuple(map(type, args)), arguments, _identify_function(encode))
        hash(key)
    except (TypeError, RecursionError):
        return None
    return key


def is_exact(args: tuple[object, ...]) -> bool:
    """Tell whether all arguments are unchangeable and equal only where PostgreSQL is sent the same."""
    return _EXACT.issuperset(map(type, args))


def _identify_function(encode: Callable[..., Any] | None) -> Hashable:
    if isinstance(encode, FunctionType) and not (
        encode.__closure__ or encode.__defaults__ or encode.__kwdefaults__
    ):
        # A lambda is another object each time, though it does the same. Code objects of different modules
        # may be equal: so their ids, which are taken as long as the flight holds the function.
        return id(encode.__code__), id(encode.__globals__)
    return encode


def _freeze(value: object) -> Hashable:
    kind = type(value)
    if kind in _EXACT or isinstance(value, Enum):
        return kind, value
    if isinstance(value, _NUMBERS) and kind in _NUMBERS:
        # Equal numbers may be written differently, as 1.0 and 1.00, and zero has a sign.
        return kind, str(value)
    if isinstance(value, _CLOCKS) and kind in _CLOCKS:
        # With the offset: the same moment is another day elsewhere.
        return kind, str(value), value.fold
    if isinstance(value, _SEQUENCES) and kind in _SEQUENCES:
        return kind, tuple(map(_freeze, value))
    if isinstance(value, dict) and kind is dict:
        # In its order, which json keeps.
        return kind, tuple((_freeze(name), _freeze(part)) for name, part in value.items())
    raise TypeError(f"no way to tell whether two values of {kind} are the same")
