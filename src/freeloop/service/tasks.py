"""The durable tasks of the service: the two-second operation once more, and an import that takes longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Final

from pydantic import AliasChoices, BaseModel, Field, TypeAdapter, ValidationError

from freeloop.database import Queries
from freeloop.kit import Freeloop
from freeloop.outbound import Client
from freeloop.outbound.many import fetch_all
from freeloop.service.waiting import Done
from freeloop.tasks import NoRetry, progress

_BATCH: Final = 100
_STEP: Final = 0.1  # seconds between two reports

# A post is taken once, whatever becomes of its item: one that was deleted does not come back with the next
# import. One statement, so one transaction, for each batch.
_STORE: Final = """
with fresh as (
    insert into imported_posts (source, post) select $1, unnest($2::text[])
    on conflict do nothing returning post
)
insert into items (name, description, price, tags)
select given.name, given.description, 0, array['imported', $1]
from unnest($2::text[], $3::text[], $4::text[]) as given(post, name, description) join fresh using (post)
"""

Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]


class Post(BaseModel):
    """What is taken of a post; anything with an id and a title or a name is one."""

    id: int | str
    title: str = Field(validation_alias=AliasChoices("title", "name"))
    body: str | None = None


class Imported(BaseModel):
    """What an import has found and stored."""

    found: int
    stored: int


_POSTS: Final = TypeAdapter(list[Post])


def declare_tasks(kit: Freeloop, find_sources: Callable[[], Mapping[str, str]]) -> None:
    """Declare the service's tasks.

    Args:
        kit: Of the service.
        find_sources: Returns the configured sources, name to URL, while the service runs.
    """

    @kit.task(timeout=3700)
    async def wait(seconds: Seconds = 2.0) -> Done:
        """Do the two-second operation in a way that survives the process: what is left is begun anew."""
        steps = max(1, round(seconds / _STEP))
        for step in range(steps):
            progress(step, steps)
            await asyncio.sleep(seconds / steps)
        progress(steps, steps)
        return Done(message="Task Complete")

    @kit.task()
    async def import_posts(sources: list[str] | None = None) -> Imported:
        """Fetch sources at the same time, and store each post as an item, once however often it is imported.

        Begun anew, after a crash or a cancellation, it goes on with what is not stored yet.
        """
        known = find_sources()
        wanted = {name: known[name] for name in sources or known if name in known}
        if missing := set(sources or ()) - wanted.keys():
            raise NoRetry(f"no source is called '{min(missing)}'; FREELOOP_SOURCES names them")
        progress(0, None, "fetching")
        answers = await fetch_all(_Fetcher(kit.outbound, wanted), wanted)
        found = sum(map(len, answers))
        looked = stored = 0
        for name, posts in zip(wanted, answers, strict=True):
            for first in range(0, len(posts), _BATCH):
                batch = posts[first : first + _BATCH]
                stored += await _store(kit.database, name, batch)
                looked += len(batch)
                progress(looked, found, f"storing {name}")
        return Imported(found=found, stored=stored)


class _Fetcher:
    """Gets the posts of a source by its name."""

    def __init__(self, client: Client, sources: Mapping[str, str]) -> None:
        self._client = client
        self._sources = sources

    async def get(self, name: str) -> list[Post]:
        answer = await self._client.get(
            self._sources[name], headers={"Accept": "application/json"}, source=name
        )
        answer.raise_for_status()
        try:
            return _POSTS.validate_json(await answer.json_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the answer"
            raise NoRetry(
                f"source '{name}' does not answer with a list of posts: {place}: {first['msg']}"
            ) from None


async def _store(queries: Queries, source: str, posts: Sequence[Post]) -> int:
    tag = await queries.execute(
        _STORE,
        source[:50],
        [str(post.id) for post in posts],
        [_clean(post.title)[:200] or "untitled" for post in posts],
        [None if post.body is None else _clean(post.body)[:10_000] for post in posts],
    )
    return int(tag.split()[-1])


def _clean(text: str) -> str:
    """Return text without what PostgreSQL cannot store."""
    return text.replace("\x00", "").encode(errors="ignore").decode().strip()
