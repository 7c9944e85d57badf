"""``freeloop run``: run any FastAPI, Starlette or ASGI app, unchanged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from freeloop.cli.failure import readable_failures

_SERVER = "Server"
_TLS = "TLS"
_RELOAD = "Reload"


def run(
    target: Annotated[
        str | None,
        typer.Argument(help="module:attribute, module, or a file; without it main.py, app.py or api.py."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8000,
    uds: Annotated[Path | None, typer.Option(help="Unix socket to listen on instead.")] = None,
    fd: Annotated[int | None, typer.Option(help="File descriptor of a socket to listen on instead.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes.", min=1, envvar="WEB_CONCURRENCY")
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again where files change.", rich_help_panel=_RELOAD)
    ] = False,
    reload_dir: Annotated[
        list[str] | None, typer.Option(help="Folders to watch.", rich_help_panel=_RELOAD)
    ] = None,
    factory: Annotated[
        bool, typer.Option("--factory", help="The attribute is a function that returns the app.")
    ] = False,
    app_dir: Annotated[str, typer.Option(help="Folder that modules are looked up in.")] = ".",
    deadline: Annotated[
        str | None, typer.Option(help="Seconds that a request may take, or none. [default: 30]")
    ] = None,
    server_timing: Annotated[
        bool, typer.Option("--server-timing", help="Say in each answer where the time went.")
    ] = False,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_config: Annotated[
        Path | None, typer.Option(help="uvicorn's log configuration, in place of ours.")
    ] = None,
    access_log: Annotated[bool | None, typer.Option(help="Log one record a request.")] = None,
    env_file: Annotated[Path | None, typer.Option(help="File with environment variables.")] = None,
    root_path: Annotated[str, typer.Option(help="Path below which a proxy serves the app.")] = "",
    proxy_headers: Annotated[
        bool, typer.Option(help="Take scheme and client address from X-Forwarded-*.")
    ] = True,
    forwarded_allow_ips: Annotated[
        str | None, typer.Option(help="Proxies whose headers are trusted.", envvar="FORWARDED_ALLOW_IPS")
    ] = None,
    loop: Annotated[str, typer.Option(help="auto, asyncio or uvloop.", rich_help_panel=_SERVER)] = "auto",
    http: Annotated[str, typer.Option(help="auto, h11, httptools.", rich_help_panel=_SERVER)] = "auto",
    ws: Annotated[
        str, typer.Option(help="auto, none, websockets or wsproto.", rich_help_panel=_SERVER)
    ] = "auto",
    ws_max_size: Annotated[
        int, typer.Option(help="Largest WebSocket message, in bytes.", rich_help_panel=_SERVER)
    ] = 16 * 2**20,
    ws_ping_interval: Annotated[
        float, typer.Option(help="Seconds between pings.", rich_help_panel=_SERVER)
    ] = 20.0,
    ws_ping_timeout: Annotated[
        float, typer.Option(help="Seconds that a pong may take.", rich_help_panel=_SERVER)
    ] = 20.0,
    lifespan: Annotated[str, typer.Option(help="auto, on or off.", rich_help_panel=_SERVER)] = "auto",
    backlog: Annotated[
        int, typer.Option(help="Connections that wait to be accepted.", rich_help_panel=_SERVER)
    ] = 2048,
    timeout_keep_alive: Annotated[
        int, typer.Option(help="Seconds that an idle connection is kept.", rich_help_panel=_SERVER)
    ] = 5,
    limit_max_requests: Annotated[
        int | None, typer.Option(help="Requests after which a worker ends.", rich_help_panel=_SERVER)
    ] = None,
    limit_max_requests_jitter: Annotated[
        int,
        typer.Option(
            help="Requests more at most, by chance, so that workers end one by one.",
            min=0,
            rich_help_panel=_SERVER,
        ),
    ] = 0,
    server_header: Annotated[
        bool, typer.Option(help="Send the header Server.", rich_help_panel=_SERVER)
    ] = True,
    date_header: Annotated[bool, typer.Option(help="Send the header Date.", rich_help_panel=_SERVER)] = True,
    header: Annotated[
        list[str] | None, typer.Option(help="Name:Value to send in each answer.", rich_help_panel=_SERVER)
    ] = None,
    ssl_keyfile: Annotated[str | None, typer.Option(help="Key.", rich_help_panel=_TLS)] = None,
    ssl_certfile: Annotated[str | None, typer.Option(help="Certificate.", rich_help_panel=_TLS)] = None,
    ssl_keyfile_password: Annotated[
        str | None, typer.Option(help="Password of the key.", rich_help_panel=_TLS)
    ] = None,
    ssl_ca_certs: Annotated[
        str | None,
        typer.Option(help="Authorities of client certificates, which are needed then.", rich_help_panel=_TLS),
    ] = None,
) -> None:
    """Run any FastAPI, Starlette or ASGI app as it is, with scopes, overload protection, an ordered end."""
    with readable_failures():
        if reload and workers:
            raise typer.BadParameter("--reload goes with one process, without --workers")
        if ssl_certfile is None and (ssl_keyfile or ssl_ca_certs):
            raise typer.BadParameter("--ssl-keyfile and --ssl-ca-certs need --ssl-certfile")
        if env_file is not None:
            _read_environment(env_file)
        from freeloop.server.run import Command, run_reloading, run_workers
        from freeloop.server.run import run as run_here
        from freeloop.server.sockets import find_sockets
        from freeloop.settings import is_loopback, read_settings

        settings = read_settings(
            {
                "deadline": deadline,
                "server_timing": server_timing or None,
                "log_format": log_format,
                "log_level": log_level,
                "access_log": access_log,
            }
        )
        options: dict[str, Any] = {
            "root_path": root_path,
            "proxy_headers": proxy_headers,
            "forwarded_allow_ips": forwarded_allow_ips,
            "loop": loop,
            "http": http,
            "ws": ws,
            "ws_max_size": ws_max_size,
            "ws_ping_interval": ws_ping_interval,
            "ws_ping_timeout": ws_ping_timeout,
            "lifespan": lifespan,
            "backlog": backlog,
            "timeout_keep_alive": timeout_keep_alive,
            "limit_max_requests": limit_max_requests,
            "limit_max_requests_jitter": limit_max_requests_jitter,
            "server_header": server_header,
            "date_header": date_header,
            "headers": [_split_header(line) for line in header or ()],
            "ssl_keyfile": ssl_keyfile,
            "ssl_certfile": ssl_certfile,
            "ssl_keyfile_password": ssl_keyfile_password,
            "ssl_ca_certs": ssl_ca_certs,
            "ssl_cert_reqs": 2 if ssl_ca_certs else 0,  # ssl.CERT_REQUIRED, ssl.CERT_NONE
            "log_config": str(log_config) if log_config else None,
        }
        command = Command(
            target,
            app_dir,
            factory,
            settings,
            local=uds is not None or (fd is None and is_loopback(host)),
            own_logs=log_config is None,
            options=options,
        )
        sockets = find_sockets(host, port, str(uds) if uds else None, fd)
        os.environ["WEB_CONCURRENCY"] = str(workers or 1)  # for each to sum up the connections of all
        if reload:
            run_reloading(command, sockets, reload_dir or [])
        elif workers and workers > 1:
            raise typer.Exit(run_workers(command, sockets, workers))
        else:
            run_here(command, sockets)


def _read_environment(path: Path) -> None:
    from dotenv import dotenv_values

    if not path.is_file():
        raise typer.BadParameter(f"--env-file: there is no file {path}")
    for name, value in dotenv_values(path).items():
        if value is not None:
            os.environ.setdefault(name, value)


def _split_header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"--header: expected Name:Value, got {line!r}")
    return name.strip(), value.strip()
