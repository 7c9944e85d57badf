"""What the gate answers itself where the app has no such route: probes and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from freeloop.errors import Unauthorized
from freeloop.gate.problems import answer_error
from freeloop.gate.tokens import check_token
from freeloop.metrics import Metrics

Headers: TypeAlias = Mapping[bytes, bytes]
Page: TypeAlias = Callable[[Headers], Response]


def list_pages(readiness_path: str, metrics: Metrics, token: str | None, *, local: bool) -> dict[str, Page]:
    """Return the pages by path.

    Args:
        readiness_path: Where readiness is asked; during the drain the gate answers there before any page.
        metrics: What ``/metrics`` shows.
        token: The bearer token that ``/metrics`` needs; None: none.
        local: Whether only this machine reaches the service. Where it does not, and there is no token,
            ``/metrics`` is no page.
    """
    pages: dict[str, Page] = {"/livez": _say_ok, readiness_path: _say_ok}
    if token is not None or local:
        pages["/metrics"] = lambda headers: _show_metrics(headers, metrics, token)
    return pages


def _say_ok(_: Headers) -> Response:
    return Response(b'{"status":"ok"}', media_type="application/json")


def _show_metrics(headers: Headers, metrics: Metrics, token: str | None) -> Response:
    try:
        check_token(headers.get(b"authorization", b"").decode("latin-1"), token)
    except Unauthorized as error:
        return answer_error(error)
    return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)
