"""SQLAlchemy's asyncio engine over asyncpg: its Core, which costs less than its ORM."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy import BigInteger, Column, DateTime, MetaData, Numeric, Table, Text, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import create_async_engine

from bench.peers.items import CONNECTIONS, SOCKET

engine = create_async_engine(
    f"postgresql+asyncpg://postgres@/freeloop?host={SOCKET}", pool_size=CONNECTIONS, max_overflow=0
)
plain_items = Table(
    "plain_items",
    MetaData(),
    Column("id", BigInteger, primary_key=True),
    Column("name", Text),
    Column("description", Text),
    Column("price", Numeric(12, 2)),
    Column("tags", ARRAY(Text)),
    Column("created_at", DateTime(timezone=True)),
    Column("updated_at", DateTime(timezone=True)),
)


@asynccontextmanager
async def connect(_: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


app = FastAPI(lifespan=connect)


@app.get("/items", response_model=None)  # what the annotation says would be a model otherwise
async def items(limit: int = 50, after: int = 0) -> list[dict[str, object]]:
    page = select(plain_items).where(plain_items.c.id > after).order_by(plain_items.c.id).limit(limit)
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(page)).mappings()]
