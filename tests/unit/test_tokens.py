"""Whose FREELOOP_TOKEN counts where kits are nested: a task router asks for its own kit's."""

import pytest
from fastapi import FastAPI

from freeloop import Freeloop
from freeloop.gate.problems import install_problem_handlers
from freeloop.service.dependencies import require_token
from freeloop.settings import Settings
from serving import served

OUTER = "the-token-of-the-outer-kit"
INNER = "the-token-of-the-inner-kit"


def make_app(token):
    app = FastAPI()
    kit = Freeloop(app, settings=Settings(_env_file=None, token=token))
    install_problem_handlers(app)

    @app.get("/guarded", dependencies=[require_token])
    async def guarded():
        return "passed"

    return app, kit


async def find_token(client, path):
    """Return which of the tokens passes."""
    passed = []
    for token in (OUTER, INNER):
        async with client.get(path, headers={"Authorization": f"Bearer {token}"}) as answer:
            passed += [token] * (answer.status != 401)
    return passed


@pytest.fixture
async def client():
    outer, kit = make_app(OUTER)
    inner, _ = make_app(INNER)
    # Its tasks are the outer kit's, wherever it is; without a database it fails behind the guard.
    for app in (outer, inner):
        app.include_router(kit.task_router())
    outer.mount("/inner", inner)
    async with served(outer) as (client, _):
        yield client


@pytest.mark.parametrize(
    ("path", "token"),
    [("/guarded", OUTER), ("/inner/guarded", INNER), ("/tasks", OUTER), ("/inner/tasks", OUTER)],
)
async def test_one_token_counts(client, path, token):
    assert await find_token(client, path) == [token]


async def test_without_a_token_any_request_passes():
    app, _ = make_app(None)
    async with served(app) as (client, _), client.get("/guarded") as answer:
        assert answer.status == 200
