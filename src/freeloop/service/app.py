"""The service as one FastAPI app; made by a call, so that nothing exists at import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI

import freeloop
from freeloop.database import Database
from freeloop.gate.install import leave_out_idle_layers
from freeloop.gate.problems import Problem, install_problem_handlers
from freeloop.kit import Freeloop, open_resources
from freeloop.metrics import Reading
from freeloop.service import fetch, health, waiting
from freeloop.service.docs_page import install_docs_page
from freeloop.service.items import routes as items
from freeloop.service.items.feed import ChangeFeed
from freeloop.service.items.retention import Retention
from freeloop.service.sample import SampleApi
from freeloop.service.state import State
from freeloop.settings import Settings

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def create_app(settings: Settings) -> FastAPI:
    """Return the reference service; its lifespan opens and closes everything it lives on."""
    kit = Freeloop(settings=settings, max_body=settings.max_body)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            resources = await stack.enter_async_context(open_resources(settings, MIGRATIONS))
            changes = ChangeFeed(resources.database)
            await stack.enter_async_context(changes)
            await stack.enter_async_context(Retention(resources.database, max_age=settings.changes_retention))
            sources = settings.sources
            if not sources:
                sources = (await stack.enter_async_context(SampleApi())).sources
            kit.metrics.watch(list_readings(resources.database))
            state = State(
                resources.database,
                resources.outbound,
                sources,
                changes,
                kit,
                settings.token.get_secret_value() if settings.token else None,
            )
            yield {"service": state}

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
    for router in (waiting.router, fetch.router, items.router, health.router):
        app.include_router(router)
    install_docs_page(app)
    install_problem_handlers(app)
    leave_out_idle_layers(app)
    kit.install(app)
    _document_problems(app)
    return app


def list_readings(database: Database) -> list[Reading]:
    """Return what /metrics reads of the database at each exposition."""
    return [
        Reading("freeloop_database_connections_in_use", "Connections lent out.", lambda: database.in_use),
        Reading("freeloop_database_connections_idle", "Connections open and free.", lambda: database.idle),
        Reading("freeloop_database_waiting", "Callers that wait for a connection.", lambda: database.waiting),
        Reading(
            "freeloop_database_longest_lease_seconds",
            "Since when the connection is lent that is out for longest.",
            lambda: database.longest_lease,
        ),
        Reading(
            "freeloop_database_statements_total",
            "Runs of each named statement.",
            lambda: database.statement_times.counts,
            "statement",
        ),
        Reading(
            "freeloop_database_statement_seconds_total",
            "How long the runs of each named statement took.",
            lambda: database.statement_times.seconds,
            "statement",
        ),
    ]


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
