"""OpenTelemetry spans by its real SDK; and nothing of it where nobody has set a provider."""

import asyncio
import os
import subprocess
import sys

import asyncpg
import pytest
from kit_app import kit_app, running, url_of
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from freeloop import Db
from freeloop.database import Database, Statement
from freeloop.errors import NotFound, StatementTimeout

NAMED = Statement("select 1 as n where $1 > 0", "find_one")


@pytest.fixture
def finished(monkeypatch):
    """The provider of the process, set for one test; gives the spans that have ended, in that order."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter.get_finished_spans
    provider.shutdown()


@pytest.fixture
async def traced(finished, address):
    async with Database(address, name="traced") as database:
        yield database


def names(spans):
    return [span.name for span in spans]


async def test_a_statement_is_a_span_without_its_values(traced, finished, address):
    await traced.fetch("select $1::text, 'kept'", "a-secret")
    await traced.fetch("select 'a-secret', 7")
    await traced.fetch(NAMED, 5)
    with_values, without, named = finished()
    assert dict(with_values.attributes) == {
        "db.system.name": "postgresql",
        "db.namespace": address.database,
        "server.address": address.host,
        "db.query.text": "select $1::text, 'kept'",
        "db.query.summary": "SELECT",
    }
    assert (with_values.name, with_values.kind, with_values.status.status_code) == (
        "SELECT",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    assert with_values.instrumentation_scope.name == "freeloop"
    assert without.attributes["db.query.text"] == "select ?, ?"
    assert (named.name, named.attributes["db.query.summary"]) == ("find_one", "find_one")
    assert "a-secret" not in "".join(span.to_json() for span in finished())


async def test_every_way_to_run_a_statement_has_one(traced, finished):
    await traced.execute("create table numbers (n int)")
    await traced.execute_many("insert into numbers values ($1)", [(1,), (2,)])
    await traced.fetch("select n from numbers")
    await traced.fetch_row("table numbers")
    await traced.fetch_value("values ($1::int)", 1)
    await traced.fetch_json("select n from numbers where n = $1", 1)
    await traced.copy_in("numbers", [(3,)], columns=["n"])
    await traced.shared("select n from numbers")
    await traced.read.fetch("select n from numbers")
    spans = finished()
    assert names(spans) == [
        *("CREATE", "INSERT", "SELECT", "TABLE", "VALUES", "SELECT", "COPY numbers", "SELECT", "SELECT")
    ]
    assert spans[5].attributes["db.query.text"] == "select n from numbers where n = $1"
    assert spans[6].attributes["db.operation.name"] == "COPY"
    assert spans[6].attributes["db.collection.name"] == "numbers"


async def test_a_shared_query_is_one_span(traced, finished):
    await asyncio.gather(*(traced.shared("select 1, pg_sleep(0.02)") for _ in range(10)))
    assert 1 < len(finished()) < 5


async def test_a_transaction_holds_what_happens_in_it(traced, finished):
    tracer = trace.get_tracer("app")
    with tracer.start_as_current_span("request"):
        async with traced.transaction() as tx:
            await tx.fetch("select 1")
            with tracer.start_as_current_span("call"):
                await asyncio.sleep(0)
            async with tx.transaction():
                await tx.fetch("select 2")
            async for _ in tx.stream("select generate_series(1, 3)", prefetch=2):
                pass
        await traced.fetch("select 3")
    spans = finished()
    assert names(spans) == [
        *("BEGIN", "SELECT", "call", "SAVEPOINT", "SELECT", "RELEASE SAVEPOINT"),
        *("SELECT", "FETCH", "FETCH", "COMMIT", "transaction", "SELECT", "request"),
    ]
    transaction, after, request = spans[-3:]
    assert {span.parent.span_id for span in spans[:-3]} == {transaction.context.span_id}
    assert transaction.parent.span_id == after.parent.span_id == request.context.span_id
    assert (transaction.kind, spans[0].kind) == (SpanKind.INTERNAL, SpanKind.CLIENT)


async def test_failures_are_told_without_what_they_quote(traced, finished):
    with pytest.raises(asyncpg.InvalidTextRepresentationError, match="a-secret"):
        await traced.fetch("select cast($1::text as int)", "a-secret")
    traced._statement_timeout = 0.2
    with pytest.raises(StatementTimeout):
        await traced.fetch("select pg_sleep(10)")
    with pytest.raises(NotFound):
        async with traced.transaction():
            raise NotFound("a-secret")
    refused, slow, _, undone = finished()
    assert refused.attributes["error.type"] == refused.attributes["db.response.status_code"] == "22P02"
    assert refused.status.status_code is StatusCode.ERROR
    assert slow.attributes["error.type"] in {"57014", "TimeoutError"}
    assert (undone.name, undone.attributes["error.type"]) == ("transaction", "NotFound")
    assert "a-secret" not in "".join(span.to_json() for span in finished())


async def test_a_block_that_ends_in_another_task_leaves_no_error(traced, finished, caplog):
    async def rows():
        async with traced.transaction() as tx:
            async for row in tx.stream("select generate_series(1, 9)", prefetch=2):
                yield row

    reader = rows()
    await asyncio.create_task(anext(reader))
    await asyncio.create_task(reader.aclose())
    assert "transaction" in names(finished())
    assert caplog.text == ""


async def test_spans_are_below_those_of_the_framework(finished, address):
    app, _ = kit_app(address)

    @app.get("/orders/{number}")
    async def read(db: Db, number: int) -> int:
        return await db.fetch_value("select $1::int", number)

    async with running(app) as client, client.get("/orders/7") as answer:
        assert answer.status == 200
    spans = {span.context.span_id: span for span in finished()}
    (statement,) = [span for span in spans.values() if "db.query.text" in span.attributes]
    above = statement
    while above.parent is not None:
        above = spans[above.parent.span_id]
    assert above.attributes["http.route"] == "/orders/{number}"


async def test_a_provider_may_come_after_the_database(address, monkeypatch):
    async with Database(address) as database:
        await database.fetch("select 1")
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        async with asyncio.timeout(5):
            while not exporter.get_finished_spans():
                await database.fetch("select 2")
                await asyncio.sleep(0.05)
        provider.shutdown()


PROGRAM = """
import asyncio, sys
from freeloop.database import Address, Database
async def main():
    async with Database(Address(sys.argv[1])) as database:
        await database.fetch("select 1")
        async with database.transaction() as tx:
            await tx.fetch("select 1")
asyncio.run(main())
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_without_a_provider_nothing_of_it_is_imported(postgres):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, url_of(postgres)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
