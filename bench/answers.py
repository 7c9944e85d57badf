"""Reads what a server sent, as far as the load generators need."""

from __future__ import annotations


def is_complete(answer: bytes | bytearray) -> bool:
    """Say whether a whole answer is there; it names its length, as those of all peers do."""
    head, end, body = answer.partition(b"\r\n\r\n")
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return bool(end and found) and len(body) >= int(rest.partition(b"\r\n")[0])


def read_status(answer: bytes | bytearray) -> int:
    """Return the HTTP status of an answer; 0 where there is none."""
    status = bytes(answer[9:12])
    return int(status) if answer.startswith(b"HTTP/1.1 ") and status.isdigit() else 0


def read_pause(answer: bytes | bytearray) -> float:
    """Return the seconds after which who was refused may come again (``Retry-After``); 0: at once."""
    head = bytes(answer).partition(b"\r\n\r\n")[0].lower()
    value = head.partition(b"\r\nretry-after:")[2].partition(b"\r\n")[0].strip()
    return float(value) if value.isdigit() else 0.0
