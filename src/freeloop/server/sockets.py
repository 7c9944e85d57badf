"""The sockets that are listened on: opened before anything else, named by URL, emptied at the end."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from freeloop.errors import StartError


def find_sockets(host: str, port: int, uds: str | None, fd: int | None) -> list[socket.socket]:
    """Open what is to be listened on.

    Args:
        host: An address.
        port: A port; 0 takes a free one.
        uds: A path for a unix socket, in place of the address.
        fd: The descriptor of a socket, in place of both.

    Raises:
        StartError: It cannot be opened; the message names it and the reason.
    """
    try:
        if fd is not None:
            return [socket.socket(fileno=fd)]
        if uds is not None:
            return [_bind_unix(Path(uds))]
    except OSError as error:
        place = f"the file descriptor {fd}" if fd is not None else uds
        raise StartError(f"cannot listen on {place}: {error.strerror or error}") from error
    return [bind(host, port)]


def bind(host: str, port: int) -> socket.socket:
    """Reserve the address, so that a port in use is known before anything is opened.

    Raises:
        StartError: The address cannot be bound; the message names it and the reason.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise StartError(
            f"cannot listen on {host} port {port}: {error.strerror or error}. "
            "Choose another with --host and --port."
        ) from error
    bound.setblocking(False)
    return bound


def url_of(bound: socket.socket, scheme: str = "http") -> str:
    """Return the URL of a socket that listens; of a unix socket, its path."""
    if bound.family is socket.AF_UNIX:
        return f"unix:{bound.getsockname()}"
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def accept_rest(listening: Any, most: int) -> list[socket.socket]:  # noqa: ANN401 - asyncio's or uvloop's socket
    """Accept who waits in the kernel's queue: to close the socket would reset those connections."""
    accepted: list[socket.socket] = []
    with socket.socket(fileno=os.dup(listening.fileno())) as waiting:
        waiting.setblocking(False)
        for _ in range(most):
            try:
                connection, _ = waiting.accept()
            except BlockingIOError:
                break  # nobody waits any more
            except OSError:
                continue  # this one has gone already
            connection.setblocking(False)
            accepted.append(connection)
    return accepted


def _bind_unix(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX)
    if path.is_socket():
        path.unlink()  # of a process that has ended: whoever listens there loses it, as with uvicorn
    bound.bind(str(path))
    path.chmod(0o666)
    bound.setblocking(False)
    return bound
