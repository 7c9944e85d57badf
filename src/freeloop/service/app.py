"""The service as one FastAPI app; made by a call, so that nothing exists at import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI

import freeloop
from freeloop.gate.install import leave_out_idle_layers
from freeloop.gate.problems import Problem, install_problem_handlers
from freeloop.kit import Freeloop
from freeloop.outbound import Source
from freeloop.service import fetch, health, waiting
from freeloop.service.docs_page import install_docs_page
from freeloop.service.items import routes as items
from freeloop.service.items.feed import ChangeFeed
from freeloop.service.items.retention import ItemRetention
from freeloop.service.sample import SampleApi
from freeloop.service.state import State
from freeloop.service.tasks import declare_tasks
from freeloop.settings import Settings

MIGRATIONS: Final = Path(__file__).parent / "migrations"

# All callers of /fetch-data ask for the same: those who do so at the same time share one call.
_SOURCES: Final = Source(coalesce=True)


def create_app(settings: Settings) -> FastAPI:
    """Return the reference service; its lifespan opens and closes everything it lives on."""
    kit = Freeloop(
        migrations=MIGRATIONS,
        settings=settings,
        max_body=settings.max_body,
        source_defaults=_SOURCES,
        console="/console",
    )

    fetched: dict[str, str] = {}
    declare_tasks(kit, lambda: fetched)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            changes = await stack.enter_async_context(ChangeFeed(kit.database))
            await stack.enter_async_context(ItemRetention(kit.database, max_age=settings.changes_retention))
            sources = {name: said["url"] for name, said in settings.sources.items()}
            if not sources:
                sources = (await stack.enter_async_context(SampleApi())).sources
            fetched.update(sources)
            yield {"service": State(sources, kit.outbound, changes)}

    app = FastAPI(
        title="Freeloop",
        version=freeloop.__version__,
        summary="Waiting tasks, external data and items: an async service on real parts.",
        lifespan=lifespan,
        docs_url=None,
        # A redirect would repeat the Host header of the request as its target.
        redirect_slashes=False,
        redoc_url=None,
    )
    # FastAPI asks one after the other, at 5 µs each: those that are called most come first.
    for router in (fetch.router, items.router, waiting.router, kit.task_router(), health.router):
        app.include_router(router)
    install_docs_page(app)
    install_problem_handlers(app)
    leave_out_idle_layers(app)
    kit.install(app)
    _document_problems(app)
    return app


def _document_problems(app: FastAPI) -> None:
    """Add the Problem schema, to which every route's responses point, to the OpenAPI document."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(problem.pop("$defs", {}), Problem=problem)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
