"""What the gate is told about the app as a whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Plain values, validated by whoever read them.

    Attributes:
        deadline: Seconds that a request may take where its route says nothing else; None: no deadline.
        deadline_header: The request header whose seconds may shorten the deadline; None: none is trusted.
        cleanup_timeout: Seconds that the clean-up of a cancelled request may take.
        max_body: The largest request body in bytes (413); None leaves that to the app.
        max_concurrency: Requests of one route that run at once at most, also where nothing is overloaded.
        server_timing: Whether each answer says where the time went (``Server-Timing``).
        readiness_path: The path that answers 503 while the service drains.
    """

    deadline: float | None = 30.0
    deadline_header: str | None = None
    cleanup_timeout: float = 5.0
    max_body: int | None = None
    max_concurrency: int = 20_000
    server_timing: bool = False
    readiness_path: str = "/readyz"
