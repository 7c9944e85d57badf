"""``freeloop serve``: run the reference service."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from freeloop.cli.failure import readable_failures


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the embedded PostgreSQL.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve on other hosts than loopback without a token.")
    ] = False,
) -> None:
    """Run the service: waiting tasks, external data and items, on an embedded or your own PostgreSQL."""
    with readable_failures():
        # Imported here, so that 'freeloop --help' and a wrong setting answer at once.
        from freeloop.settings import find_unknown, load_settings

        settings = load_settings(
            {
                "host": host,
                "port": port,
                "data_dir": data_dir,
                "log_format": log_format,
                "log_level": log_level,
                "insecure": insecure or None,
            }
        )
        import logging

        import uvicorn
        import uvloop

        from freeloop.logs import configure_logs
        from freeloop.server.process import serve as serve_app
        from freeloop.server.shutdown import Timetable
        from freeloop.server.sockets import bind, url_of
        from freeloop.service.app import create_app

        logger = logging.getLogger("freeloop")
        bound = bind(settings.host, settings.port)
        writer = configure_logs(format=settings.log_format, level=settings.log_level)
        try:
            os.environ["WEB_CONCURRENCY"] = "1"  # for the sum of connections: this is the only process
            for line in find_unknown():
                logger.warning(line)
            app = create_app(settings)
            config = uvicorn.Config(
                app,
                lifespan="off",  # run around the server, so that a failure is one line
                http="httptools",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=4096,  # as many as Linux takes (net.core.somaxconn): clients that come all at once
            )
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                overdue = runner.run(
                    serve_app(
                        config,
                        [bound],
                        drain=app.state.freeloop,
                        timetable=Timetable.plan(settings.shutdown_timeout, settings.drain_delay),
                        resources=app.router.lifespan_context(app),
                        on_listening=lambda: logger.info("listening", extra={"url": url_of(bound)}),
                        flush=writer.close,
                    )
                )
            overdue.wait_for_threads()
        finally:
            writer.close()
