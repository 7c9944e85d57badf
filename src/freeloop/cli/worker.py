"""``freeloop worker``: run an app's tasks, without serving anybody."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from freeloop.cli.failure import readable_failures


def worker(
    target: Annotated[
        str | None,
        typer.Argument(help="module:attribute, module, or a file; without it main.py, app.py or api.py."),
    ] = None,
    queue: Annotated[
        list[str] | None, typer.Option(help="Take from this queue; may be repeated. [default: all]")
    ] = None,
    service: Annotated[
        bool,
        typer.Option("--service", help="Those of the reference service, 'freeloop serve'; without TARGET."),
    ] = False,
    factory: Annotated[
        bool, typer.Option("--factory", help="The attribute is a function that returns the app.")
    ] = False,
    app_dir: Annotated[str, typer.Option(help="Folder that modules are looked up in.")] = ".",
    log_format: Annotated[str | None, typer.Option(help="auto, json or console.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run the durable tasks of an app in this process, beside those that serve it or on another machine."""
    if service and target is not None:
        raise typer.BadParameter("expected --service or an app, not both")
    with readable_failures():
        import logging

        import uvloop
        from starlette.applications import Starlette

        from freeloop.errors import StartError
        from freeloop.logs import configure_logs
        from freeloop.server.shutdown import Timetable
        from freeloop.server.target import find_kit, load_app
        from freeloop.server.work import work
        from freeloop.settings import read_settings

        logger = logging.getLogger("freeloop")
        given = read_settings({"log_format": log_format, "log_level": log_level})
        writer = configure_logs(format=given.log_format, level=given.log_level)
        try:
            if service:
                from freeloop.service.app import create_app

                app: Any = create_app(given)
            else:
                app = load_app(target, app_dir=app_dir, factory=factory)
            kit = find_kit(app)
            if not isinstance(app, Starlette) or kit is None or not kit.tasks.declared:
                raise StartError(
                    f"expected an app whose kit declares tasks at '{target or app_dir}': "
                    "kit = Freeloop(app, database=True), and @kit.task()"
                )
            kit.become_worker(queue)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                overdue = runner.run(
                    work(
                        drain=kit,
                        timetable=Timetable.plan(kit.settings.shutdown_timeout, 0.0),
                        resources=app.router.lifespan_context(app),
                        on_working=lambda: logger.info("working", extra={"queues": queue or "all"}),
                        flush=writer.close,
                    )
                )
            overdue.wait_for_threads()
        finally:
            writer.close()
