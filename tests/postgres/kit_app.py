"""An app with a kit on the test's own database, on a real socket."""

from contextlib import asynccontextmanager
from urllib.parse import quote

from fastapi import FastAPI

from freeloop import Freeloop
from freeloop.settings import Settings
from serving import served


def url_of(address):
    host = quote(str(address.host), safe="")
    return f"postgresql://{address.user}@/{address.database}?host={host}&port={address.port}"


def settings_of(address, **others):
    return Settings(_env_file=None, database_url=url_of(address), access_log=False, **others)


def kit_app(address, *, database=True, migrations=None, lifespan=None, settings=None, **options):
    """Return an app and its kit; ``served(app, lifespan="on")`` opens it."""
    app = FastAPI(lifespan=lifespan, **options)
    kit = Freeloop(
        app, database=database, migrations=migrations, settings=settings_of(address, **(settings or {}))
    )
    return app, kit


@asynccontextmanager
async def running(app):
    """Give a client of the app, which runs with its lifespan."""
    async with served(app, lifespan="on", ws="websockets-sansio") as (client, _):
        yield client
