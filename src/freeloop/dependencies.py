"""What a route receives from the kit around its app, as FastAPI dependencies.

::

    from freeloop import Db

    @app.get("/orders/{order_id}")
    async def read(db: Db, order_id: int) -> Order: ...

In tests, ``app.dependency_overrides[current_database]`` puts another one in its place.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from freeloop.database import Database
from freeloop.gate.middleware import PASSED
from freeloop.kit import Freeloop
from freeloop.outbound import Client


def find_kit(connection: HTTPConnection) -> Freeloop:
    """Return the kit whose gate the request or WebSocket has come through.

    Raises:
        RuntimeError: It has come through none.
    """
    # Not by the app, which within a mounted one is that.
    kit = connection.scope.get(PASSED)
    if not isinstance(kit, Freeloop):
        raise RuntimeError(  # noqa: TRY004 - no wrong type: nothing is there
            "there is no kit around this app: write Freeloop(app, database=True) where the app is made"
        )
    return kit


# All async: FastAPI runs each plain function in a thread.
async def current_kit(connection: HTTPConnection) -> Freeloop:
    """Return the kit whose gate the request has come through."""
    return find_kit(connection)


async def current_database(connection: HTTPConnection) -> Database:
    """Return the kit's database."""
    return find_kit(connection).database


async def current_outbound(connection: HTTPConnection) -> Client:
    """Return the kit's client for external APIs."""
    return find_kit(connection).outbound


async def current_guarded_outbound(connection: HTTPConnection) -> Client:
    """Return the kit's client for URLs that users supply."""
    return find_kit(connection).guarded_outbound


Kit = Annotated[Freeloop, Depends(current_kit)]
"""The kit around the app, as a parameter of a route."""
Db = Annotated[Database, Depends(current_database)]
"""The kit's database, as a parameter of a route: ``async def read(db: Db)``."""
Outbound = Annotated[Client, Depends(current_outbound)]
"""The kit's client for external APIs, as a parameter of a route."""
GuardedOutbound = Annotated[Client, Depends(current_guarded_outbound)]
"""The kit's client for URLs that users supply, as a parameter of a route."""
