"""What a route says about itself, by decorators on its function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, TypeAlias, TypeVar

Priority: TypeAlias = Literal["low", "normal", "high", "critical"]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_MARK: Final = "__freeloop_route__"
_PRIORITIES: Final = ("low", "normal", "high", "critical")


class AppDefault:
    """The type of :data:`APP_DEFAULT`."""

    def __repr__(self) -> str:
        return "APP_DEFAULT"


APP_DEFAULT: Final = AppDefault()


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a route declares.

    Attributes:
        deadline: Seconds that a request may take, None for no deadline, or the app's default.
        finish: Whether it runs to its end when the client has gone.
        priority: How much queueing it bears before it is shed; ``critical`` is never shed.
    """

    deadline: float | AppDefault | None = APP_DEFAULT
    finish: bool = False
    priority: Priority = "normal"

    def __str__(self) -> str:
        """What differs from the defaults, such as ``deadline=5.0 priority=low``; empty: nothing does."""
        given = ((field, getattr(self, field.name)) for field in fields(self))
        return " ".join(
            f"{field.name}={str(value).lower()}" for field, value in given if value != field.default
        )


def deadline(seconds: float | None) -> Callable[[Endpoint], Endpoint]:
    """Give each request of this route so many seconds, in place of the app's default.

    Place it below the route's decorator. Past the deadline the request is cancelled, and answered with 504
    where nothing was sent yet.

    Args:
        seconds: Over 0; None: as long as it takes.
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(f"@deadline expects seconds over 0, or None for no deadline; got {seconds!r}")
    return _mark(deadline=seconds)


def finish(endpoint: Endpoint) -> Endpoint:
    """Let each request of this route run to its end when its client has gone; its deadline still holds."""
    return _mark(finish=True)(endpoint)


def priority(level: Priority) -> Callable[[Endpoint], Endpoint]:
    """Say which routes give way first under overload.

    Args:
        level: ``low``, ``normal`` (the default), ``high``, or ``critical``: never queued, never shed, with
            threads of its own; for health checks.
    """
    if level not in _PRIORITIES:
        raise ValueError(f"@priority expects one of {', '.join(_PRIORITIES)}; got {level!r}")
    return _mark(priority=level)


def read_declaration(endpoint: object) -> Declaration:
    """Return what an endpoint declares; the defaults where it declares nothing."""
    found = getattr(getattr(endpoint, "func", endpoint), _MARK, None)  # also behind functools.partial
    return found if isinstance(found, Declaration) else Declaration()


def _mark(**declared: Any) -> Callable[[Endpoint], Endpoint]:  # noqa: ANN401 - the fields of Declaration
    def apply(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _MARK, replace(read_declaration(endpoint), **declared))
        return endpoint

    return apply
