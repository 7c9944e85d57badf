"""The server of the sample API."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib.resources import files
from types import TracebackType
from typing import Final, Self

import orjson
from aiohttp import web

NAMES: Final = ("posts", "users")
_SHUTDOWN_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Collection:
    """The rows of one file, as the bytes that are sent."""

    name: str
    everything: bytes
    by_id: dict[str, bytes]

    async def send_everything(self, _: web.Request) -> web.Response:
        return _json(self.everything)

    async def send_row(self, request: web.Request) -> web.Response:
        row = self.by_id.get(request.match_info["id"])
        if row is None:
            detail = f"/{self.name} has the ids 1 to {len(self.by_id)}"
            return _json(orjson.dumps({"detail": detail}), 404)
        return _json(row)


class SampleApi:
    """Serves ``/posts``, ``/posts/{id}``, ``/users`` and ``/users/{id}`` on 127.0.0.1, as JSON.

    An async context manager; or :meth:`start` and :meth:`stop`.
    """

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self._url: str | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def sources(self) -> dict[str, str]:
        """The URL of each collection by its name, while it runs.

        Raises:
            RuntimeError: It is not running.
        """
        if self._url is None:
            raise RuntimeError("the sample API has no address before start() and after stop()")
        return {name: f"{self._url}/{name}" for name in NAMES}

    async def start(self) -> None:
        """Listen on a free port; without effect while it runs."""
        if self._runner is not None:
            return
        collections = await asyncio.to_thread(_read)
        app = web.Application()
        for collection in collections:
            app.router.add_get(f"/{collection.name}", collection.send_everything)
            app.router.add_get(f"/{collection.name}/{{id}}", collection.send_row)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_TIMEOUT
        )
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        except BaseException:
            await self.stop()
            raise
        host, port = self._runner.addresses[0][:2]
        self._url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Close the port and its connections within about 1 s; without effect when it does not run."""
        runner, self._runner, self._url = self._runner, None, None
        if runner is not None:
            await runner.cleanup()


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


def _read() -> list[_Collection]:
    return [_read_collection(name) for name in NAMES]


def _read_collection(name: str) -> _Collection:
    rows = orjson.loads(files(__package__).joinpath(f"{name}.json").read_bytes())
    return _Collection(name, orjson.dumps(rows), {str(row["id"]): orjson.dumps(row) for row in rows})
