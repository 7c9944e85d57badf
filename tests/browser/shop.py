"""A shop in which everything can go wrong that the console shows; each route makes one trouble."""

import asyncio
import os
import time
from pathlib import Path

from fastapi import FastAPI

from freeloop import Db, Freeloop, Outbound, current_scope
from freeloop.database import Statement
from freeloop.source import Source
from freeloop.tasks import progress

app = FastAPI(title="Shop")
kit = Freeloop(
    app,
    database=True,
    sources={
        "quotes": Source(os.environ.get("SHOP_QUOTES", "http://127.0.0.1:9"), retries=0),
        "prices": Source(
            os.environ.get("SHOP_PRICES", "http://127.0.0.1:9"), retries=1, coalesce=True, cache=True
        ),
    },
)
released = asyncio.Event()
counters = asyncio.Semaphore(2)
COUNT_STOCK = Statement("select pg_sleep($1)", "count_stock")


@app.get("/orders")
async def list_orders(db: Db):
    return await db.fetch_value("select 1")


@app.get("/process")
async def tell_process():
    return os.getpid()


@app.get("/ping")
async def ping(): ...


@app.get("/stock")
async def count_stock(db: Db, seconds: float = 0.4):
    await db.execute(COUNT_STOCK, seconds)


@app.get("/scarce")
async def serve_at_counter():
    async with counters:
        await asyncio.sleep(0.1)


@app.get("/export")
async def export(db: Db, seconds: float = 60):
    async with db.transaction() as transaction:
        await transaction.fetch_value("select 1")
        await asyncio.sleep(seconds)


@app.get("/label")
async def print_label(db: Db, seconds: float = 0.3):
    async with db.transaction() as transaction:
        await transaction.fetch_value("select 1")
        await kit.run_sync(time.sleep, seconds)
        await transaction.fetch_value("select 1")


@app.get("/report")
async def report(seconds: float = 0.4):
    time.sleep(seconds)  # noqa: ASYNC251 - it is to block the loop


@app.get("/audit")
async def audit(seconds: float):
    time.sleep(seconds)  # noqa: ASYNC251 - it is to block the loop


@app.get("/count")
async def count(seconds: float):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


@app.get("/hang")
async def hang(until: Path):
    for _ in range(1200):
        if until.exists():  # noqa: ASYNC240 - it is to block the loop
            return
        time.sleep(0.05)  # noqa: ASYNC251 - likewise


@app.get("/quotes")
async def quote(outbound: Outbound):
    await outbound.get("/latest", source="quotes")


@app.get("/prices/{name}")
async def read_price(outbound: Outbound, name: str):
    await outbound.get(f"/{name}", source="prices")


@app.get("/fail")
async def fail():
    raise LookupError("the shelf is empty")


@app.get("/wait")
async def wait(seconds: float = 60):
    await asyncio.sleep(seconds)


@app.get("/family")
async def raise_family(seconds: float = 60):
    async def bring_up(name: str):
        await asyncio.sleep(seconds)

    for name in ("first", "second"):
        current_scope().start_soon(bring_up, name)
    await asyncio.sleep(seconds)


@app.get("/forget")
async def forget(seconds: float = 60):
    async def drift():
        await asyncio.sleep(seconds)

    asyncio.create_task(drift())  # noqa: RUF006 - it is to be kept by nobody
    await asyncio.sleep(seconds)


@app.get("/deadlock")
async def deadlock():
    async def first():
        async with left:
            first_has.set()
            await second_has.wait()
            async with right:
                pass

    async def second():
        async with right:
            second_has.set()
            await first_has.wait()
            async with left:
                pass

    left, right = asyncio.Lock(), asyncio.Lock()
    first_has, second_has = asyncio.Event(), asyncio.Event()
    await asyncio.gather(first(), second())


@kit.task(retries=0)
async def send_invoice(number: int) -> None:
    raise ConnectionRefusedError(f"no printer for invoice {number}")


@kit.task(retries=0)
async def import_rows(total: int) -> None:
    progress(total // 4, total, "reading")
    await released.wait()


@kit.task(queue="archive", retries=0)
async def archive(year: int) -> None:
    await released.wait()


@kit.task()
async def remind(customer: str) -> str:
    return customer


kit.tasks.schedules.declare(remind.bind("Ada"), cron="0 3 * * *", name="nightly")


@app.get("/start/{name}")
async def start(name: str, delay: float = 0):
    calls = {
        "invoice": lambda: send_invoice.bind(7),
        "import": lambda: import_rows.bind(400),
        "archive": lambda: archive.bind(2025),
        "remind": lambda: remind.bind("Ada"),
    }
    handle = await kit.tasks.start(calls[name](), delay=delay)
    return str(handle.id)
