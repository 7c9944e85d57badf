"""The routes under ``/tasks``, a router that any app includes: ``app.include_router(kit.task_router())``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Final, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.params import Depends as Dependency
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from freeloop.errors import Conflict, NotFound, Unprocessable
from freeloop.gate.idempotency import idempotency_key
from freeloop.gate.problems import responses
from freeloop.tasks.client import Tasks
from freeloop.tasks.declare import Call
from freeloop.tasks.model import State, TaskPage, TaskStatus

# A traceback shows internals, and an id is all that these routes ask for.
_PUBLIC: Final = {"error": {"traceback"}}
_LOCATION: Final = {"Location": {"description": "Where the task is.", "schema": {"type": "string"}}}
_STARTED: Final[dict[int | str, dict[str, Any]]] = {
    202: {
        "description": "Started: committed, and run as soon as a worker is free.",
        "headers": {
            **_LOCATION,
            "Idempotency-Replayed": {
                "description": "`true` where an earlier request with this key started the task.",
                "schema": {"type": "string", "enum": ["true"]},
            },
        },
    }
}
_ARGUMENTS: Final[dict[str, Any]] = {
    "requestBody": {
        "description": "The arguments by name, as the task declares them.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}

TaskId = Annotated[UUID, Path(description="The task's id.")]
Key = Annotated[
    str | None,
    idempotency_key(
        "A retry with the same key and arguments starts nothing and gets the same task, for as long as that "
        "is kept; with other arguments it is refused (422)."
    ),
]


class Started(BaseModel):
    """A task that was started."""

    id: UUID
    name: str = Field(description="Which task, by its declared name.")


def make_router(tasks: Tasks, *, guards: Sequence[Dependency]) -> APIRouter:
    """Return the router.

    Args:
        tasks: The app's tasks.
        guards: What every write, and the list of all tasks, depends on.
    """
    router = APIRouter(prefix="/tasks", tags=["tasks"])
    # One name for what stands behind /tasks/, a task's name or its id: to OpenAPI they are one path.
    routes = _Routes(tasks)
    guarded = {"dependencies": list(guards)}
    router.get("", response_model=TaskPage, responses=responses(401, 504), **guarded)(routes.list_all)  # type: ignore[arg-type]
    router.post(
        "/{task}",
        status_code=202,
        response_model=Started,
        responses=responses(401, 404, 504) | _STARTED,
        openapi_extra=_ARGUMENTS,
        **guarded,  # type: ignore[arg-type]
    )(routes.start)
    router.get("/{task}", response_model=TaskStatus, responses=responses(404, 504))(routes.read)
    router.get(
        "/{task}/events",
        response_class=EventSourceResponse,
        responses=responses(404, 504),
        dependencies=[Depends(routes.find)],  # before the answer begins
    )(routes.follow)
    for name, route in (("cancel", routes.cancel), ("retry", routes.retry)):
        router.post(
            f"/{{task}}/{name}",
            response_model=TaskStatus,
            responses=responses(401, 404, 409, 504),
            **guarded,  # type: ignore[arg-type]
        )(route)
    return router


class _Routes:
    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def list_all(
        self,
        limit: Annotated[int, Query(ge=1, le=200, description="How many at most.")] = 50,
        before: Annotated[
            UUID | SkipJsonSchema[None], Query(description="`next` of the page before.")
        ] = None,
        name: Annotated[
            str | SkipJsonSchema[None], Query(max_length=100, description="Only those of this name.")
        ] = None,
        state: Annotated[State | SkipJsonSchema[None], Query(description="Only those in this state.")] = None,
    ) -> Response:
        """List tasks, the latest first, a page at a time."""
        page = await self._tasks.list(limit=limit, before=before, name=name, state=state)
        return _json(page.model_dump_json(exclude={"tasks": {"__all__": _PUBLIC}}))

    async def start(
        self,
        request: Request,
        task: Annotated[str, Path(max_length=100, description="The task's declared name.")],
        key: Key,
    ) -> Response:
        """Start a task. It is committed before the answer is sent, and survives whatever comes."""
        declared = self._tasks.find(task)
        if declared is None:
            raise NotFound(
                f"There is no task called '{task[:64]}'",
                f"The declared ones are: {', '.join(sorted(self._tasks.declared)) or 'none'}.",
            )
        call: Call[Any] = Call(declared, declared.payload.encode_json(await request.body()), key)
        handle = await self._tasks.start(call)
        if not handle.created and handle.arguments != call.arguments:
            raise Unprocessable(
                "Idempotency-Key was used with other arguments",
                "The first request with this key started the task with other arguments, and a key stands for "
                "one request. Send the same ones to get the same task, or a new key to start another.",
            )
        headers = {"Location": f"{request.url.path.rpartition('/')[0]}/{handle.id}"}
        if not handle.created:
            headers["Idempotency-Replayed"] = "true"
        return _json(Started(id=handle.id, name=task).model_dump_json(), 202, headers)

    async def read(self, task: TaskId) -> Response:
        """Read a task: its state, its progress, its result."""
        return _show(await self._tasks.read(task))

    async def find(self, task: TaskId) -> None:
        """Refuse an id that is not there."""
        await self._tasks.read(task)

    async def follow(
        self,
        task: TaskId,
        last: Annotated[
            int | SkipJsonSchema[None],
            Header(
                alias="Last-Event-ID",
                ge=0,
                le=2**31 - 1,
                description="The revision that was seen last; without it, the task as it is comes first.",
            ),
        ] = None,
    ) -> AsyncIterator[TaskStatus]:
        """Follow a task: it as it is now, and again at each change, as server-sent events, until its end.

        The event's name is the task's state, its id the task's revision. Of several changes at once, the last
        is sent. A client that loses the connection resumes with `Last-Event-ID`, as browsers do.
        """
        handle = self._tasks.get(task)
        async with aclosing(cast("Any", handle.events(after=last or 0))) as stream:
            async for status in stream:
                yield _event(status)

    async def cancel(self, task: TaskId) -> Response:
        """Cancel a task: one that waits ends at once, one that runs within a second, wherever it does."""
        if not await self._tasks.cancel(task):
            raise await self._refuse(task, "cancelled", "waits or runs")
        return _show(await self._tasks.read(task))

    async def retry(self, task: TaskId) -> Response:
        """Start a task again that has failed or was cancelled, with the same id and arguments."""
        if not await self._tasks.retry(task):
            raise await self._refuse(task, "started again", "has failed or was cancelled")
        return _show(await self._tasks.read(task))

    async def _refuse(self, task: UUID, what: str, which: str) -> Conflict:
        state = (await self._tasks.read(task)).state
        return Conflict(
            f"Task {task} cannot be {what}", f"Expected a task that {which}; its state is '{state}'."
        )


def _event(status: TaskStatus) -> TaskStatus:
    data = status.model_dump_json(exclude=cast("Any", _PUBLIC))
    # FastAPI documents the type that the generator is annotated with, and sends a ServerSentEvent as it is.
    event = ServerSentEvent(event=status.state, id=str(status.revision), raw_data=data, retry=1_000)
    return cast("TaskStatus", event)


def _show(status: TaskStatus) -> Response:
    return _json(status.model_dump_json(exclude=cast("Any", _PUBLIC)))


def _json(content: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(content, status, headers, "application/json")
