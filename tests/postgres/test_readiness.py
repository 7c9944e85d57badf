"""Whether the service can serve is whether its database answers, now."""

import asyncio
import time

from fastapi import FastAPI
from items_service import GivenDatabase

from freeloop.database import Database
from freeloop.gate.problems import install_problem_handlers
from freeloop.service import health
from freeloop.testing import FaultyNetwork
from serving import served


async def test_readiness_is_503_with_the_reason_while_the_database_is_silent_and_liveness_is_not(address):
    async with FaultyNetwork.in_front_of(address) as network:
        database = Database(network.reach(address), size=1)
        await database.open()
        app = FastAPI()
        GivenDatabase(app, database)
        app.include_router(health.router)
        install_problem_handlers(app)
        try:
            async with asyncio.timeout(30), served(app) as (session, _):
                assert await ask(session, "/readyz") == (200, None)
                network.stall()
                began = time.monotonic()
                status, reason = await ask(session, "/readyz")
                assert time.monotonic() - began < 3  # the check takes 2 s at most
                assert (status, reason["title"]) == (503, "Database unavailable")
                assert "did not answer" in reason["detail"]
                assert await ask(session, "/livez") == (200, None)
                await network.heal()
                while await ask(session, "/readyz") != (200, None):
                    await asyncio.sleep(0.05)
        finally:
            await database.close()


async def ask(session, path):
    async with session.get(path) as answer:
        problem = await answer.json()
        return answer.status, problem if answer.content_type == "application/problem+json" else None
