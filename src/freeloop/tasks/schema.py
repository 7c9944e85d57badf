"""Where the migrations of the tasks are, and the schema that they fill."""

from pathlib import Path
from typing import Final

TASKS: Final = Path(__file__).parent / "migrations"
TASKS_SCHEMA: Final = "freeloop"
