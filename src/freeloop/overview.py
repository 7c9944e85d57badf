"""All that is told of a running app: its metrics, the answers for others, and the console."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from starlette.applications import Starlette
from starlette.types import ASGIApp

from freeloop.background import Background
from freeloop.console import Beside, Console
from freeloop.console.beside import put_beside
from freeloop.gate.bulkheads import find_routes
from freeloop.gate.middleware import Gate, Observer
from freeloop.insights import Fleet, Insights, Parts, TaskInsights
from freeloop.inspection import Question
from freeloop.logs import log_request
from freeloop.metrics import Metrics
from freeloop.outbound import Stacks
from freeloop.readings import (
    list_database_readings,
    list_gate_readings,
    list_outbound_readings,
    list_task_readings,
    list_watch_readings,
    list_work_readings,
)
from freeloop.resources import Resources
from freeloop.scope import Scope
from freeloop.settings import Settings
from freeloop.tasks import Tasks
from freeloop.tasks.work import Work
from freeloop.watch import Watch


class Overview:
    """Reads the parts of one app, which come and go, and knows how to show them.

    Args:
        settings: All settings.
        background: Its background executions.
        tasks: Its durable tasks.
        work: What this process does of them.
        watch: What watches the loop, while something does.
        resources: What it has.

    Attributes:
        metrics: What ``/metrics`` shows.
        insights: What answers for this process.
        durable: What tells of tasks.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        background: Background,
        tasks: Tasks,
        work: Work,
        watch: Callable[[], Watch | None],
        resources: Callable[[], Resources],
    ) -> None:
        self.metrics = Metrics()
        self.durable = TaskInsights(tasks)
        self._settings = settings
        self._background = background
        self._work = work
        self._watch = watch
        self._resources = resources
        self._gate: Gate | None = None
        self._console: Console | None = None
        self.insights = Insights(
            Parts(
                gate=lambda: self._gate,
                scopes=self._list_scopes,
                database=lambda: resources().database.current,
                stacks=self._find_stacks,
                watch=watch,
                tree=lambda: resources().inspection.current,
                tasks_waiting=lambda: self.durable.waiting,
            )
        )

    @property
    def questions(self) -> dict[str, Question]:
        """What other processes may ask this one."""
        return {"insights": self.insights.ask}

    @property
    def observers(self) -> list[Observer]:
        """Who is told of each request that has ended."""
        told: list[Observer] = [self.metrics.observe, self.insights.recorder.observe]
        return [*told, log_request] if self._settings.access_log else told

    def read(self, gate: Gate) -> None:
        """Read this gate, and all that is behind it, from now on."""
        self._gate = gate
        resources = self._resources()
        for readings in (
            list_gate_readings(gate),
            list_work_readings(lambda: resources.threads.current, self._background),
            list_task_readings(lambda: self._work.worker),
            list_database_readings(lambda: resources.database.current),
            list_watch_readings(self._watch),
            list_outbound_readings(self._find_stacks),
        ):
            self.metrics.watch(readings)

    def show(self, app: ASGIApp, path: str, *, title: str) -> ASGIApp:
        """Put the console beside an app; return what is to be served: a Starlette app is that itself.

        Where the app has routes of its own there, or a console already, nothing happens.

        Args:
            app: What is shown.
            path: Where the console is to be, without a slash at its end.
            title: What the app is called.
        """
        taken = any(f"{getattr(route, 'path', '')}/".startswith(f"{path}/") for route in find_routes(app))
        if self._console is not None or taken:
            return app
        fleet = Fleet(self.insights, self.durable, self._settings.runtime_dir)
        self._console = Console(fleet, title=title, token=self._settings.bearer_token)
        if isinstance(app, Starlette):
            put_beside(app, path, self._console)
            return app
        return Beside(app, path, self._console)

    def close(self) -> None:
        """End the streams of those who look."""
        if self._console is not None:
            self._console.close()

    def _find_stacks(self) -> Stacks | None:
        calls = self._resources().outbound.current
        return None if calls is None else calls.stacks

    def _list_scopes(self) -> Iterator[Scope]:
        yield from self._gate.scopes if self._gate else ()
        yield from self._background
        yield from self._work.running
