"""``/docs``: the API in the browser, from files in the package, since a first run may have no internet."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

_FILES: Final = Path(__file__).parent / "static" / "swagger-ui"


def install_docs_page(app: FastAPI) -> None:
    """Serve ``/docs``, to which ``/`` leads, and the files it needs; build ``app`` with ``docs_url=None``."""
    app.mount("/static/swagger-ui", StaticFiles(directory=_FILES))

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        # Behind a proxy that serves us below a path, that path belongs in front of each address.
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title}: API",
            swagger_js_url=f"{root}/static/swagger-ui/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/static/swagger-ui/swagger-ui.css",
            swagger_favicon_url=f"{root}/static/swagger-ui/favicon-32x32.png",
        )
