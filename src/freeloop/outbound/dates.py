"""Dates as HTTP writes them."""

from __future__ import annotations

from email.utils import parsedate_to_datetime


def read_date(value: str) -> float | None:
    """Return the seconds since the epoch of a header's date; None where it is none.

    It may have any of the three forms of RFC 9110, section 5.6.7; one without a zone is GMT.
    """
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = parsedate_to_datetime(f"{value} GMT")
        return moment.timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
