"""When a schedule is due: pure arithmetic over a rule, the next tick and the time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadCronError, CroniterBadDateError, croniter

CatchUp: TypeAlias = Literal["skip", "latest", "all"]
"""What becomes of ticks that nobody was there for: none of them runs, the last one, or each."""

ON_TIME: Final = timedelta(seconds=30)
"""A tick that is no older than this was not missed."""
MOST: Final = 100
"""How many missed ticks are made up for at most, the latest ones."""


def find_zone(name: str) -> ZoneInfo:
    """Return a time zone; the first time, its file is read.

    Raises:
        ValueError: There is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone '{name}'; one is 'Europe/Zurich'") from error


@dataclass(frozen=True, slots=True)
class Rule:
    """When a schedule is due.

    Args:
        cron: Five fields (minute, hour, day, month, day of the week), or six with seconds at the end.
        every: Seconds between two ticks, in place of ``cron``.
        zone: The time zone that ``cron`` is read in, by its IANA name.

    Raises:
        ValueError: Not one of the two is given, or one is wrong.
    """

    cron: str | None = None
    every: float | None = None
    zone: str = "UTC"

    def __post_init__(self) -> None:
        if (self.cron is None) == (self.every is None):
            raise ValueError("a schedule has either cron or every")
        if self.every is not None and not self.every >= 1:
            raise ValueError(f"expected every 1 second or more; got {self.every!r}")
        find_zone(self.zone)
        if self.cron is not None:
            try:
                self.after(datetime(2000, 1, 1, tzinfo=ZoneInfo("UTC")))
            except (CroniterBadCronError, CroniterBadDateError) as error:
                raise ValueError(f"expected a cron expression such as '0 3 * * *'; {error}") from error

    def after(self, moment: datetime) -> datetime:
        """Return the first tick after a moment; of ``every``, seconds are counted from there.

        Where the clock jumps forward, a tick within the hour that is missing comes at its end. Where it
        jumps back, a tick at a fixed hour comes once, and one of each hour in both.
        """
        if self.every is not None:
            return moment + timedelta(seconds=self.every)
        assert self.cron is not None  # noqa: S101 - one of the two is given
        ticks = croniter(self.cron, moment.astimezone(ZoneInfo(self.zone)))
        at_fixed_hours = not self.cron.split()[1].startswith("*")
        while True:
            tick: datetime = ticks.get_next(datetime)
            if not (tick.fold and at_fixed_hours):
                return tick


def find_due(
    rule: Rule, upcoming: datetime, now: datetime, catch_up: CatchUp
) -> tuple[list[datetime], datetime]:
    """Return the ticks that are to run now, and the one after them.

    Args:
        rule: When it is due.
        upcoming: The tick that comes next, or has come.
        now: The time.
        catch_up: What becomes of missed ones.
    """
    if rule.every is not None and upcoming <= now:
        # The ones that nobody is going to look at need not be counted one by one.
        behind = max(0, int((now - upcoming) / timedelta(seconds=rule.every)) - MOST)
        upcoming += behind * timedelta(seconds=rule.every)
    ticks: list[datetime] = []
    while upcoming <= now:
        ticks = [*ticks[-MOST + 1 :], upcoming]
        upcoming = rule.after(upcoming)
    match catch_up:
        case "all":
            due = ticks
        case "latest":
            due = ticks[-1:]
        case "skip":
            due = [tick for tick in ticks[-1:] if now - tick <= ON_TIME]
    return due, upcoming
