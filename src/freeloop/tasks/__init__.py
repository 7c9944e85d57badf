"""Durable background tasks in the app's own PostgreSQL.

``declare`` and ``payload``: what a task is. ``client``: start, look, cancel; ``handle``: one of them.
``worker`` takes them, ``execution`` is one run, ``endings`` writes how it went. ``engine`` is the port to
what keeps jobs, ``pgqueuer_engine`` its implementation; ``store`` is our own table. May be imported by the
kit and what is above it.
"""

from freeloop.tasks.client import Tasks
from freeloop.tasks.declare import Call, Task
from freeloop.tasks.execution import Execution, Middleware, Next, complete, current_execution, progress
from freeloop.tasks.handle import Handle
from freeloop.tasks.model import Progress, State, TaskStatus
from freeloop.tasks.retry import NoRetry, Retry, RetryPolicy
from freeloop.tasks.schedules import Schedule, Schedules

__all__ = [
    "Call",
    "Execution",
    "Handle",
    "Middleware",
    "Next",
    "NoRetry",
    "Progress",
    "Retry",
    "RetryPolicy",
    "Schedule",
    "Schedules",
    "State",
    "Task",
    "TaskStatus",
    "Tasks",
    "complete",
    "current_execution",
    "progress",
]
