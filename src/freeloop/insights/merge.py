"""Several processes as one. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar, cast

from freeloop.insights.answers import (
    Block,
    BlocksAnswer,
    DatabaseAnswer,
    HistoryAnswer,
    RequestsAnswer,
    RouteLoad,
    Snapshot,
    UpstreamsAnswer,
)
from freeloop.insights.recorder import SECONDS, Sample

A = TypeVar("A")


def merge(answers: Sequence[A]) -> A:
    """Return what several processes have answered to one question, as one answer; of one, it itself."""
    if len(answers) == 1:
        return answers[0]
    return cast("A", _MERGES[type(answers[0])](answers))


def merge_samples(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Put the samples of the same second together.

    The quantiles of several processes cannot be had from their own: shown is the mean of the medians, by
    their requests, and the worst of the others.
    """
    seconds: dict[int, list[Sample]] = {}
    for sample in samples:
        seconds.setdefault(sample.at, []).append(sample)
    return tuple(_merge_second(seconds[at]) for at in sorted(seconds))[-SECONDS:]


def _merge_second(samples: Sequence[Sample]) -> Sample:
    if len(samples) == 1:
        return samples[0]
    medians = [(each.p50, each.requests) for each in samples if each.p50 is not None]
    weight = sum(requests for _, requests in medians)
    limits = [each.limit for each in samples if each.limit is not None]
    return Sample(
        at=samples[0].at,
        requests=sum(each.requests for each in samples),
        errors=sum(each.errors for each in samples),
        shed=sum(each.shed for each in samples),
        p50=sum(median * requests for median, requests in medians) / weight if weight else None,
        p99=max((each.p99 for each in samples if each.p99 is not None), default=None),
        running=sum(each.running for each in samples),
        limit=sum(limits) if limits else None,
        lag=max(each.lag for each in samples),
        lent=sum(each.lent for each in samples),
        pool=sum(each.pool for each in samples),
        pool_waiting=sum(each.pool_waiting for each in samples),
        breakers=max(each.breakers for each in samples),
        # All of them ask the same database.
        tasks=max((each.tasks for each in samples if each.tasks is not None), default=None),
    )


def _merge_routes(loads: Iterable[RouteLoad]) -> tuple[RouteLoad, ...]:
    routes: dict[str, list[RouteLoad]] = {}
    for load in loads:
        routes.setdefault(load.route, []).append(load)
    return tuple(
        RouteLoad(
            route,
            sum(each.running for each in alike),
            sum(each.waiting for each in alike),
            sum(limits) if (limits := [each.limit for each in alike if each.limit is not None]) else None,
            sum(each.shed for each in alike),
            sum(each.lately for each in alike),
            any(each.full for each in alike),
        )
        for route, alike in routes.items()
    )


def _merge_snapshots(all_: Sequence[Snapshot]) -> Snapshot:
    failed: Counter[str] = Counter()
    for each in all_:
        failed.update(dict(each.failed))
    return Snapshot(
        samples=merge_samples(_all(all_, "samples")),
        routes=_merge_routes(_all(all_, "routes")),
        pools=tuple(_all(all_, "pools")),
        breakers=tuple(_all(all_, "breakers")),
        blocks=_merge_found(all_),
        failed=tuple(failed.most_common(3)),
        hung=tuple(_all(all_, "hung")),
        silent=tuple(_all(all_, "silent")),
        deadlocks=tuple(_all(all_, "deadlocks")),
    )


def _merge_requests(all_: Sequence[RequestsAnswer]) -> RequestsAnswer:
    return RequestsAnswer(
        live=tuple(sorted(_all(all_, "live"), key=lambda scope: -scope.seconds)),
        running=sum(each.running for each in all_),
        failed=tuple(sorted(_all(all_, "failed"), key=lambda ended: -ended.at)),
        slow=tuple(sorted(_all(all_, "slow"), key=lambda ended: -ended.at)),
    )


def _merge_found(all_: Sequence[Snapshot | BlocksAnswer]) -> tuple[Block, ...]:
    """What took most time first, as each of them has it."""
    return tuple(sorted(_all(all_, "blocks"), key=lambda block: -block.seconds))


def _merge_blocks(all_: Sequence[BlocksAnswer]) -> BlocksAnswer:
    return BlocksAnswer(
        blocks=_merge_found(all_),
        dropped=sum(each.dropped for each in all_),
        watched=any(each.watched for each in all_),
    )


def _merge_databases(all_: Sequence[DatabaseAnswer]) -> DatabaseAnswer:
    return DatabaseAnswer(
        tuple(_all(all_, "pools")), tuple(_all(all_, "statements")), tuple(_all(all_, "held_idle"))
    )


def _all(answers: Iterable[object], field: str) -> Iterable[Any]:
    return chain.from_iterable(getattr(each, field) for each in answers)


_MERGES: dict[type, Callable[[Sequence[Any]], object]] = {
    Snapshot: _merge_snapshots,
    HistoryAnswer: lambda all_: HistoryAnswer(merge_samples(_all(all_, "samples"))),
    RequestsAnswer: _merge_requests,
    BlocksAnswer: _merge_blocks,
    DatabaseAnswer: _merge_databases,
    UpstreamsAnswer: lambda all_: UpstreamsAnswer(tuple(_all(all_, "sources"))),
}
