"""The console's routes: pages, their JSON twins and live streams, actions, the session."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from freeloop.console import access
from freeloop.console.pages import PAGES, Filters, Page
from freeloop.console.render import Renderer
from freeloop.console.texts import LANGUAGES, choose_language
from freeloop.errors import FreeloopError
from freeloop.events import wait_at_most
from freeloop.gate.tokens import is_same
from freeloop.insights import Fleet
from freeloop.insights.answers import HistoryAnswer
from freeloop.insights.shared import Shared

logger = logging.getLogger("freeloop.console")

_LANGUAGE: Final = "freeloop_language"
_YEAR: Final = 365 * 86400
_HEADERS: Final = {
    # No script, style or connection but our own files: a name or a path that somebody has sent runs nothing.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_WRONG_TOKEN: Final = 0.5  # seconds that a wrong token waits for its answer


class Console:
    """The console of one app, as an ASGI app; the path that it is below is its ``root_path``.

    Args:
        fleet: What it shows.
        title: The app's name.
        token: What opens it from elsewhere than loopback; None: nothing does.
    """

    def __init__(self, fleet: Fleet, *, title: str, token: str | None) -> None:
        self._fleet = fleet
        self._token = token
        self._renderer = Renderer(title)
        self._answers: Shared[Mapping[str, Any]] = Shared()
        self._fragments: Shared[str] = Shared()
        self._closed = asyncio.Event()
        self._app = Starlette(
            routes=[
                Route("/", self._go_to_first),
                Route("/static/{name:path}", self._send_file),
                Route("/login", self._log_in, methods=["GET", "POST"]),
                Route("/logout", self._log_out, methods=["POST"]),
                Route("/language", self._choose_language, methods=["POST"]),
                Route("/history.json", self._send_history),
                Route("/requests/cancel", self._cancel_request, methods=["POST"]),
                Route("/tasks/{id:uuid}/{action}", self._act_on_task, methods=["POST"]),
                Route("/{page}.json", self._send_json),
                Route("/{page}/live", self._stream),
                Route("/{page}", self._send_page),
            ],
            exception_handlers={HTTPException: self._fail, FreeloopError: self._fail_ours},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        if not self._renderer.ready:
            await asyncio.to_thread(self._renderer.load)
        page = scope["path"].removeprefix(scope["root_path"])
        refused = None if page.startswith(("/static/", "/login")) else self._refuse(request)
        if refused is None and request.method == "POST" and not self._is_own(request):
            refused = self._say(request, 403, "access.origin")
        app = refused if refused is not None else self._app

        async def send_safely(message: Any) -> None:  # noqa: ANN401 - an ASGI message
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] += [
                    (key, value.encode())
                    for name, value in _HEADERS.items()
                    if (key := name.lower().encode()) not in given
                ]
            await send(message)

        await app(scope, receive, send_safely)

    def close(self) -> None:
        """End the live streams: the process stops."""
        self._closed.set()

    # Access

    def _refuse(self, request: Request) -> Response | None:
        if self._is_allowed(request):
            return None
        if self._token is None:
            return self._say(request, 403, "access.closed")
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"{_root(request)}/login", 303)
        return Response(
            "401: the bearer token or a session is missing\n", 401, {"WWW-Authenticate": "Bearer"}
        )

    def _is_allowed(self, request: Request) -> bool:
        token, headers = self._token, request.headers
        if token is None:
            return access.is_local(request.client.host if request.client else None, headers)
        cookie = request.cookies.get(access.COOKIE, "")
        return access.is_session(cookie, token, time.time()) or access.check_bearer(headers, token)

    def _is_own(self, request: Request) -> bool:
        """Return whether an action comes from a page of ours, or from a program that bears the token."""
        if self._token is not None and access.check_bearer(request.headers, self._token):
            return True
        return access.is_same_origin(request.headers, request.url.scheme)

    async def _log_in(self, request: Request) -> Response:
        if self._token is None:
            return RedirectResponse(f"{_root(request)}/now", 303)
        wrong = False
        if request.method == "POST":
            if is_same((await _read_form(request)).get("token", ""), self._token):
                answer = RedirectResponse(f"{_root(request)}/now", 303)
                answer.set_cookie(
                    access.COOKIE,
                    access.sign_session(self._token, time.time()),
                    max_age=access.LASTS,
                    path=_root(request) or "/",
                    secure=request.url.scheme == "https",
                    httponly=True,
                    samesite="strict",
                )
                logger.warning("console: logged in", extra={"by": _who(request)})
                return answer
            wrong = True
            logger.warning("console: a wrong token", extra={"by": _who(request)})
            await asyncio.sleep(_WRONG_TOKEN)
        return self._render(request, "login", 401 if wrong else 200, wrong=wrong)

    async def _log_out(self, request: Request) -> Response:
        answer = RedirectResponse(f"{_root(request)}/login", 303)
        answer.delete_cookie(access.COOKIE, path=_root(request) or "/")
        return answer

    # Looking

    async def _go_to_first(self, request: Request) -> Response:
        return RedirectResponse(f"{_root(request)}/now", 303)

    async def _send_file(self, request: Request) -> Response:
        found = self._renderer.files.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        etag = f'"{hashlib.sha256(found.content).hexdigest()[:16]}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.type, headers=headers)

    async def _send_page(self, request: Request) -> Response:
        page, filters = _find(request)
        if request.query_params.get("format") == "json":
            return await self._send_json(request)
        answer = await self._read(page, filters)
        return self._render(
            request,
            page.name,
            answer=answer,
            filters=filters,
            processes=await self._fleet.list_processes(),
            live=f"{_root(request)}/{page.name}/live?{urlencode(filters.query)}",
            twin=f"{_root(request)}/{page.name}.json?{urlencode(filters.query)}",
        )

    async def _send_json(self, request: Request) -> Response:
        page, filters = _find(request)
        answer = await self._read(page, filters)
        return _json({**answer, "processes": await self._fleet.list_processes()})

    async def _send_history(self, request: Request) -> Response:
        """Send the last 15 minutes by column, as the charts want them."""
        process = Filters(request.query_params).process
        history: HistoryAnswer = await self._fleet.answer("history", process)
        columns = {name: [getattr(each, name) for each in history.samples] for name in _COLUMNS}
        return _json(columns)

    async def _stream(self, request: Request) -> Response:
        page, filters = _find(request)
        language = self._language(request)
        return StreamingResponse(
            self._follow(page, filters, language, _root(request)), media_type="text/event-stream"
        )

    async def _follow(self, page: Page, filters: Filters, language: str, root: str) -> AsyncIterator[str]:
        """Yield the page's content as it changes, and for the charts the latest sample."""
        key = (page.name, tuple(sorted(filters.query.items())), language, root)
        sent = ""
        yield "retry: 1000\n\n"
        while not self._closed.is_set():
            answer: Mapping[str, Any] = {}
            try:
                answer = await self._read(page, filters)
                fragment = await self._fragments.get(
                    key, page.every, partial(self._render_fragment, page, filters, answer, language, root)
                )
            except FreeloopError as error:  # the database is away; the page says so until it is there again
                fragment = self._renderer.render("trouble.html", language=language, error=error)
            if fragment != sent:
                sent = fragment
                yield "".join(f"data: {line}\n" for line in fragment.splitlines()) + "\n"
            if page.name == "now" and answer and (samples := answer["snapshot"].samples):
                yield f"event: sample\ndata: {orjson.dumps(samples[-1]).decode()}\n\n"
            await wait_at_most(self._closed, page.every)

    async def _render_fragment(
        self, page: Page, filters: Filters, answer: Mapping[str, Any], language: str, root: str
    ) -> str:
        return self._renderer.render(
            f"{page.name}.html", language=language, root=root, page=page.name, answer=answer, filters=filters
        )

    async def _read(self, page: Page, filters: Filters) -> Mapping[str, Any]:
        key = (page.name, tuple(sorted(filters.query.items())))
        return await self._answers.get(key, page.every, partial(page.read, self._fleet, filters))

    # Acting

    async def _cancel_request(self, request: Request) -> Response:
        form = await _read_form(request)
        try:
            process, number = int(form["process"]), int(form["number"])
        except (KeyError, ValueError):
            raise HTTPException(422) from None
        done = await self._fleet.cancel(process, number, who=_who(request))
        return self._acted(request, "requests", {"cancelled": done})

    async def _act_on_task(self, request: Request) -> Response:
        id_: UUID = request.path_params["id"]
        action = request.path_params["action"]
        if action not in {"cancel", "retry", "run"} or not self._fleet.tasks.present:
            raise HTTPException(404)
        done = await self._fleet.tasks.act(action, id_, who=_who(request))
        return self._acted(request, "tasks", {"done": done})

    def _acted(self, request: Request, page: str, result: dict[str, bool]) -> Response:
        self._answers.clear()
        self._fragments.clear()
        if "text/html" not in request.headers.get("accept", ""):
            return _json(result)
        back = request.headers.get("referer", "")
        within = f"{request.url.scheme}://{request.headers.get('host')}{_root(request)}/"
        return RedirectResponse(back if back.startswith(within) else f"{_root(request)}/{page}", 303)

    # Words

    async def _choose_language(self, request: Request) -> Response:
        chosen = (await _read_form(request)).get("language", "")
        answer = self._acted(request, "now", {"done": chosen in LANGUAGES})
        if chosen in LANGUAGES:
            answer.set_cookie(
                _LANGUAGE, chosen, max_age=_YEAR, path=_root(request) or "/", httponly=True, samesite="strict"
            )
        return answer

    def _language(self, request: Request) -> str:
        chosen = request.query_params.get("lang") or request.cookies.get(_LANGUAGE)
        return choose_language(chosen, request.headers.get("accept-language", ""))

    def _render(self, request: Request, template: str, status: int = 200, **values: object) -> Response:
        text = self._renderer.render(
            f"{template}.html" if template in {"login", "message"} else "layout.html",
            language=self._language(request),
            root=_root(request),
            page=template,
            token=self._token is not None,
            **values,
        )
        return Response(text, status, media_type="text/html")

    def _say(self, request: Request, status: int, key: str, detail: str = "") -> Response:
        return self._render(request, "message", status, code=status, key=key, detail=detail)

    async def _fail(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return self._say(request, status, "access.missing" if status == 404 else "access.refused")

    async def _fail_ours(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, FreeloopError):
            raise error
        return self._say(request, error.status, "access.refused", f"{error.title}: {error.detail}")


_COLUMNS: Final = (
    *("at", "requests", "errors", "shed", "p50", "p99", "running", "limit", "lag"),
    *("lent", "pool", "pool_waiting", "breakers", "tasks"),
)


def _find(request: Request) -> tuple[Page, Filters]:
    page = PAGES.get(request.path_params["page"])
    if page is None:
        raise HTTPException(404)
    return page, Filters(request.query_params)


def _root(request: Request) -> str:
    root: str = request.scope["root_path"]
    return root


def _who(request: Request) -> str:
    return request.client.host if request.client else "unknown"


async def _read_form(request: Request) -> dict[str, str]:
    """Read a form of plain fields, of 4 kB at most; no parser of files is needed for that."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > 4096:
            raise HTTPException(413)
    return dict(parse_qsl(body.decode("utf-8", "replace")))


def _json(value: object) -> Response:
    # Tasks are named by their numbers, which JSON has as text.
    text = orjson.dumps(value, default=_dump, option=orjson.OPT_NON_STR_KEYS)
    return Response(text, media_type="application/json")


def _dump(value: Any) -> object:  # noqa: ANN401 - what orjson does not know
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "_asdict"):
        return value._asdict()
    raise TypeError(f"{type(value)} is no JSON")
