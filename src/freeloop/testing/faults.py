"""What goes wrong on a network: decided without I/O, and for one seed always the same.

By the number of a connection and of the bytes that passed, never by the clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Way: TypeAlias = Literal["client", "server"]
Kind: TypeAlias = Literal["reset", "close", "stall", "delay", "split"]

_KINDS: Final[tuple[Kind, ...]] = ("reset", "close", "stall", "delay", "split")
_WAYS: Final[tuple[Way, ...]] = ("client", "server")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one connection once so many bytes have passed.

    Args:
        kind: ``reset`` (RST, as after a crash) or ``close`` (FIN, as after an orderly end), both without the
            byte that comes next; ``stall``: nothing more passes, and nobody is told; ``delay``: each piece
            is held; ``split``: bytes are sent in small pieces.
        after: how many bytes pass unharmed first, 0 or more.
        toward: which bytes are meant: those that go to the ``client``, or to the ``server``.
        seconds: how long a piece is held (``delay``) or nothing passes (``stall``; None: until
            :meth:`~freeloop.testing.FaultyNetwork.heal`).
        size: the most bytes of a piece (``split``), 1 or more.
    """

    kind: Kind
    after: int = 0
    toward: Way = "client"
    seconds: float | None = None
    size: int = 1

    def __post_init__(self) -> None:
        """Refuse what could never happen, or would never end."""
        if self.after < 0 or self.size < 1 or (self.seconds is not None and self.seconds < 0):
            raise ValueError(f"expected after >= 0, size >= 1 and seconds >= 0; got {self}")
        if self.kind == "delay" and self.seconds is None:
            raise ValueError("expected the seconds of a delay; got None")


Plan: TypeAlias = Callable[[int], Sequence[Fault]]
"""What goes wrong on the connection with that number; the first has number 0."""


def plan_faults(
    seed: int,
    *,
    share: float = 0.5,
    after: int = 4000,
    delay: float = 0.02,
    stall: float | None = None,
    kinds: Sequence[Kind] = _KINDS,
) -> Plan:
    """Return a plan that gives some connections one or two faults, at points between any two bytes.

    Args:
        seed: the plan of one seed is always the same.
        share: the part of the connections that get faults, 0 to 1.
        after: the most bytes that pass before a fault.
        delay: the most seconds that a piece is held.
        stall: the most seconds that a stall lasts; None: until :meth:`~freeloop.testing.FaultyNetwork.heal`.
        kinds: which faults come into question.
    """

    def plan(number: int) -> Sequence[Fault]:
        # A generator for each connection: what one gets does not hang on when another was made.
        dice = random.Random(f"{seed}/{number}")  # noqa: S311 - a plan has to be repeatable, not secret
        if dice.random() >= share:
            return ()
        faults = []
        for _ in range(dice.choice((1, 1, 2))):
            kind = dice.choice(tuple(kinds))
            longest = delay if kind == "delay" else stall
            faults.append(
                Fault(
                    kind,
                    # Half of them early: the login, and the first statements, are the shortest messages.
                    after=int(dice.random() ** 2 * after),
                    toward=dice.choice(_WAYS),
                    seconds=None if longest is None else dice.random() * longest,
                    size=dice.choice((1, 2, 7, 64)),
                )
            )
        return tuple(faults)

    return plan
