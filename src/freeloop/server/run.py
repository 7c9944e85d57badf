"""Runs anybody's app: what ``freeloop run`` does in each of its processes."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.importer import ImportFromStringError
from uvicorn.supervisors import ChangeReload

from freeloop.errors import FreeloopError, StartError
from freeloop.kit import Freeloop
from freeloop.logs import LogWriter, configure_logs
from freeloop.server.process import serve
from freeloop.server.shutdown import Timetable
from freeloop.server.sockets import url_of
from freeloop.server.target import find_kit, load_app
from freeloop.server.workers import supervise
from freeloop.settings import Settings, find_unknown

logger = logging.getLogger("freeloop")


@dataclass(frozen=True, slots=True)
class Command:
    """What is to be run; it travels to worker processes.

    Attributes:
        target: Which app; see :func:`load_app`.
        app_dir: The folder that modules are looked up in.
        factory: Whether the target is a function that returns the app.
        settings: All settings.
        local: Whether only this machine reaches it.
        own_logs: Whether our logs are set up; False where a configuration of uvicorn's kind was given.
        options: The options that are handed to :class:`uvicorn.Config` as they are.
    """

    target: str | None
    app_dir: str
    factory: bool
    settings: Settings
    local: bool
    own_logs: bool
    options: Mapping[str, Any] = field(default_factory=dict)


def run(command: Command, sockets: list[socket.socket]) -> None:
    """Run the app in this process until a signal ends it.

    Args:
        command: What is to be run.
        sockets: Sockets that are bound.

    Raises:
        StartError: There is no such app.
    """
    # Before the app is imported: where it sets up logs itself, its word is the last.
    with _logging(command) as writer:
        _warn_of_unknown()
        _run(command, sockets, writer)


def run_workers(command: Command, sockets: list[socket.socket], workers: int) -> int:
    """Run the app in several processes; return the exit code."""
    with _logging(command):
        _warn_of_unknown()
        return supervise(
            partial(_run_child, command),
            sockets,
            workers=workers,
            shutdown_timeout=command.settings.shutdown_timeout,
            start_timeout=command.settings.start_timeout,
        )


def run_reloading(command: Command, sockets: list[socket.socket], folders: list[str]) -> None:
    """Run the app in a process that starts again where files change, by uvicorn's own supervisor."""
    _warn_of_unknown()
    for bound in sockets:
        bound.set_inheritable(True)
    config = uvicorn.Config(
        "", reload=True, reload_dirs=folders or [command.app_dir], log_config=None, access_log=False
    )
    # No load balancer has to turn away, and somebody waits for the change.
    settings = command.settings.model_copy(update={"drain_delay": 0.0})
    target = partial(_run_child, replace(command, settings=settings))
    ChangeReload(config, target=target, sockets=sockets).run()


def _run_child(
    command: Command, sockets: list[socket.socket], on_listening: Callable[[], None] | None = None
) -> None:
    """Run the app where no command line stands around it that makes an error readable."""
    try:
        with _logging(command) as writer:
            _run(command, sockets, writer, on_listening)
    except FreeloopError as error:
        sys.stderr.write(f"freeloop: {error.title}: {error.detail}\n")
        sys.exit(1)


def _run(
    command: Command,
    sockets: list[socket.socket],
    writer: LogWriter | None,
    on_listening: Callable[[], None] | None = None,
) -> None:
    settings = command.settings
    app = load_app(command.target, app_dir=command.app_dir, factory=command.factory)
    kit, served, resources = _prepare(app, command)
    config = _configure(served, command.options)
    scheme = "https" if config.is_ssl else "http"
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        overdue = runner.run(
            serve(
                config,
                sockets,
                drain=kit,
                timetable=Timetable.plan(settings.shutdown_timeout, settings.drain_delay),
                resources=resources,
                on_listening=lambda: _tell(sockets, scheme, on_listening),
                flush=lambda: _close(writer),
            )
        )
    overdue.wait_for_threads()


def _configure(app: Any, options: Mapping[str, Any]) -> uvicorn.Config:  # noqa: ANN401 - any ASGI app
    """Make and load uvicorn's configuration.

    Raises:
        StartError: An option names something that is not there or cannot be read.
    """
    try:
        config = uvicorn.Config(app, access_log=False, interface="asgi3", **options)
        config.load()
    except (OSError, ValueError, KeyError, ImportError, ImportFromStringError) as error:
        given = ", ".join(
            f"--{name.replace('_', '-')} {options[name]}"
            for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "log_config", "http", "ws", "loop")
            if options.get(name) not in {None, "auto"}
        )
        raise StartError(
            f"an option cannot be used: {str(error) or type(error).__name__} ({given})"
        ) from error
    return config


def _prepare(
    app: Any,  # noqa: ANN401 - any ASGI app
    command: Command,
) -> tuple[Freeloop, Any, AbstractAsyncContextManager[None]]:
    """Put a kit around the app, where it has none; return it, what is served, and what is to be opened."""
    if (own := find_kit(app)) is not None:
        return own, own.show_console(app), own.open()
    kit = Freeloop(settings=command.settings, local=command.local)
    if isinstance(app, Starlette):
        kit.install(app)
        return kit, kit.show_console(app), kit.open()
    return kit, kit.show_console(kit.wrap(app)), _open_and_watch(kit)


@asynccontextmanager
async def _open_and_watch(kit: Freeloop) -> AsyncIterator[None]:
    """Do what the lifespan of an app does where the kit is installed in it."""
    async with kit.open():
        with kit.watching():
            yield


def _warn_of_unknown() -> None:
    """Log what looks like a setting and is none; once for all processes."""
    for line in find_unknown():
        logger.warning(line)


@contextmanager
def _logging(command: Command) -> Iterator[LogWriter | None]:
    """Set up our logs for the block, where they are ours."""
    writer = None
    if command.own_logs:
        writer = configure_logs(format=command.settings.log_format, level=command.settings.log_level)
    try:
        yield writer
    finally:
        _close(writer)


def _tell(sockets: list[socket.socket], scheme: str, on_listening: Callable[[], None] | None) -> None:
    for bound in sockets:
        logger.info("listening", extra={"url": url_of(bound, scheme)})
    if on_listening is not None:
        on_listening()


def _close(writer: LogWriter | None) -> None:
    if writer is not None:
        writer.close()
