"""Whether and when a failed execution is followed by another: a pure decision."""

from __future__ import annotations

from dataclasses import dataclass


class Retry(Exception):
    """Raised in a task: try again later, though nothing is broken.

    It counts as one of the task's retries.

    Args:
        after: Seconds until then, exactly; None: as after any failure.
        reason: For people.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        if after is not None and not after >= 0:
            raise ValueError(f"expected seconds of 0 or more, or None; got {after!r}")
        super().__init__(reason or "the task asks to be tried again")
        self.after = after


class NoRetry(Exception):
    """Raised in a task: it has failed, and trying again cannot help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed execution is followed by another.

    Attributes:
        retries: Executions after the first that may fail too; None: without end.
        base: Seconds; the first pause is from half of it to it, each next one twice as long.
        longest: Seconds that a pause is at most.
        never: Errors after which there is none.
    """

    retries: int | None = 3
    base: float = 1.0
    longest: float = 300.0
    never: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if (self.retries is not None and self.retries < 0) or not 0 <= self.base <= self.longest:
            raise ValueError(f"expected retries of 0 or more and 0 <= base <= longest; got {self}")

    def pause(self, error: BaseException, *, failures: int, dice: float) -> float | None:
        """Return the seconds until the next execution, or None where there is none.

        Half of a pause is fixed: full jitter would send some back at once to what has just failed.

        Args:
            error: Why the latest execution failed.
            failures: How many have failed, this one included.
            dice: A random number from 0 to below 1.
        """
        if isinstance(error, NoRetry) or (isinstance(error, self.never) and not isinstance(error, Retry)):
            return None
        if self.retries is not None and failures > self.retries:
            return None
        if isinstance(error, Retry) and error.after is not None:
            return error.after
        return min(self.longest, self.base * 2.0 ** min(failures - 1, 1000)) * (1 + dice) / 2
