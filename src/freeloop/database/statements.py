"""SQL in files of its own: one statement a file, called by the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Self


class Statement(str):
    """SQL with a name, by which metrics call it; everywhere else it is a plain string.

    Args:
        sql: The statement, with ``$1`` parameters.
        name: Such as ``list_items``.
    """

    __slots__ = ("name",)
    name: str

    def __new__(cls, sql: str, name: str) -> Self:
        """Make a named statement."""
        made = super().__new__(cls, sql)
        made.name = name
        return made


class StatementTimes:
    """How often each named statement was run, and how long that took in all."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count one run."""
        self.counts[name] = self.counts.get(name, 0) + 1
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class Statements:
    """The statements of a folder, read once.

    ::

        SQL = Statements(Path(__file__).parent / "sql")
        rows = await db.fetch(SQL["list_items"], 0, 20)

    Args:
        folder: A folder with ``.sql`` files, one statement each.

    Raises:
        ValueError: There is no such folder, it has no ``.sql`` file, or one of them is empty.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.sql"))
        if not files:
            raise ValueError(f"expected .sql files in {folder}, found none")
        self._folder = folder
        self._statements = {file.stem: Statement(_read(file), file.stem) for file in files}

    def __getitem__(self, name: str) -> Statement:
        """Return the statement of ``name.sql``."""
        try:
            return self._statements[name]
        except KeyError:
            known = ", ".join(self._statements)
            raise KeyError(f"there is no {name}.sql in {self._folder}; there are: {known}") from None


def _read(file: Path) -> str:
    sql = file.read_text("utf-8").strip().rstrip(";")
    if not sql:
        raise ValueError(f"{file} is empty: expected one statement")
    return sql
