"""``GET /items`` reads its query itself: it must accept, refuse and document what FastAPI would."""

import json
from typing import Annotated

import pytest
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from freeloop.service.items.model import LARGEST_ID
from freeloop.service.items.page import PARAMETERS, read_query


def answer_mistakes(_, error):
    wrong = [[mistake["type"], list(mistake["loc"]), mistake["msg"]] for mistake in error.errors()]
    return JSONResponse({"wrong": wrong}, 422)


def make_app():
    router = APIRouter()

    @router.get("/ours", openapi_extra={"parameters": PARAMETERS})
    async def ours(request: Request):
        query = read_query(request)
        return [query.limit, query.after]

    @router.get("/fastapi")
    async def theirs(
        limit: Annotated[int, Query(ge=1, le=200, description="How many at most.")] = 50,
        after: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
    ):
        return [limit, after or 0]

    app = FastAPI()
    app.include_router(router)
    app.add_exception_handler(RequestValidationError, answer_mistakes)
    return app


async def ask(app, path, query):
    """Call the app as a server does; return the status and the body."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    request = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": query.encode()}
    await app(request, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    "query",
    [
        *("", "limit=20", "after=7", "limit=20&after=40", "after=40&limit=20", "limit=200", "limit=1"),
        *("limit=0", "limit=201", "limit=-1", "limit=", "limit=x", "limit=1.0", "limit=1.5", "limit=1e2"),
        *("after=0", f"after={LARGEST_ID}", f"after={LARGEST_ID + 1}", "after=", "after=null"),
        *("limit=1&limit=2", "limit=2&limit=x", "limit=x&limit=2", "limit=0&after=0", "Limit=3", "other=1"),
        *(
            "limit=%32",
            "limit=+2",
            "limit=%2B2",
            "limit=%FF",
            "limit=%00",
            "&&limit=3&",
            "limit=03",
            "limit=3;4",
        ),
        "limit=" + "9" * 5000,
    ],
)
async def test_a_query_is_read_as_fastapi_reads_it(query):
    app = make_app()
    assert await ask(app, "/ours", query) == await ask(app, "/fastapi", query)


def test_the_parameters_are_documented_as_fastapi_documents_them():
    app = make_app()
    paths = get_openapi(title="-", version="-", routes=app.routes)["paths"]
    ours, theirs = (
        {each["name"]: each for each in paths[path]["get"]["parameters"]} for path in ("/ours", "/fastapi")
    )
    assert ours["limit"] == theirs["limit"]
    # FastAPI says "null" of an optional parameter, which no query can hold.
    documented = ours["after"]["schema"]
    assert [{key: documented[key] for key in ("type", "minimum", "maximum")}, {"type": "null"}] == theirs[
        "after"
    ]["schema"]["anyOf"]
