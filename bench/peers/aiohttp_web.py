"""The same route on aiohttp.web with uvloop and its access log: no validation, no OpenAPI, less work."""

import asyncio
import logging
import os
import socket

import uvloop
from aiohttp import web

SECONDS = float(os.environ.get("BENCH_SECONDS", "2"))


async def async_task(_: web.Request) -> web.Response:
    await asyncio.sleep(SECONDS)
    return web.json_response({"message": "Task Complete"})


def main() -> None:
    logging.basicConfig(level=logging.INFO)  # aiohttp writes its access log only where INFO is enabled
    app = web.Application()
    app.router.add_get("/async-task", async_task)
    bound = socket.create_server(("127.0.0.1", 0))
    logging.getLogger(__name__).info("running on http://127.0.0.1:%d", bound.getsockname()[1])
    # Its default backlog of 128 would measure the listen queue, not the server.
    web.run_app(app, sock=bound, backlog=4096, loop=uvloop.new_event_loop(), print=None)


if __name__ == "__main__":
    main()
