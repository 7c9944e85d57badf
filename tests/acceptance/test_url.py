"""The service on a PostgreSQL that somebody else runs, named by a URL."""

import asyncio
import urllib.parse

import aiohttp


async def test_the_service_runs_on_a_given_postgresql(start, address):
    host = urllib.parse.quote(address.host, safe="")
    url = f"postgresql://{address.user}@/{address.database}?host={host}"
    service = await asyncio.to_thread(start, FREELOOP_DATABASE_URL=url)
    async with aiohttp.ClientSession(await asyncio.to_thread(lambda: service.url)) as client:
        async with client.post("/items", json={"name": "Elsewhere", "price": "1.00"}) as answer:
            assert answer.status == 201
        async with client.get("/readyz") as answer:
            assert answer.status == 200
    assert await asyncio.to_thread(service.stop) == 0
