"""The external API that the peers of ``fetch`` call: nginx with a static file.

It says that its answers hold for a minute: only who has a cache makes use of that.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench.machine import read_version
from bench.servers import end, wait_until

POSTS = [
    {
        "userId": 1 + number // 10,
        "id": 1 + number,
        "title": f"Notes on bread, part {1 + number}",
        "body": "I spent the morning at the bakery and wrote down what the dough did, hour by hour. " * 2,
    }
    for number in range(10)
]
_CONFIGURATION = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000000; keepalive_timeout 300s; open_file_cache max=10;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    types {{ application/json json; }} add_header Cache-Control "max-age=60";
    server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}/www; }}
}}
"""


@contextmanager
def open_upstream(folder: Path) -> Iterator[str]:
    """Start nginx on the caller's core; it ends with the block.

    Returns:
        The URL of a JSON document of ten posts.

    Raises:
        RuntimeError: There is no nginx.
    """
    nginx = _find_nginx()
    if nginx is None:
        raise RuntimeError("the case fetch needs nginx as its upstream: apt-get install nginx-light")
    port = _find_port()
    home = folder / "upstream"
    (home / "www").mkdir(parents=True)
    (home / "www" / "posts.json").write_text(json.dumps(POSTS), "utf-8")
    configuration = home / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=home, port=port), "utf-8")
    process = subprocess.Popen(
        [nginx, "-p", str(home), "-e", str(home / "nginx.log"), "-c", str(configuration)]
    )
    try:
        wait_until(lambda: _answers(port), timeout=10, expected="nginx to listen")
        yield f"http://127.0.0.1:{port}/posts.json"
    finally:
        end(process)


def find_version() -> str | None:
    """Return the version of nginx; None where there is none."""
    nginx = _find_nginx()
    return None if nginx is None else read_version(nginx, "-v")


def _find_nginx() -> str | None:
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")


def _find_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port: int = free.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with closing(socket.socket()) as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0
