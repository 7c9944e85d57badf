"""Calls to external APIs: one shared client, one deadline a call, one tree of errors.

A call goes ``Client`` → layers → ``Transport``; :mod:`freeloop.outbound.layers` puts the layers in order. A
layer is a :class:`Transport` around a transport, so that the client, its callers and the tests know one port
only. May be imported by any room above; imports ``errors``, ``source`` and ``scope`` only.
"""

from freeloop.outbound.aiohttp_transport import AiohttpTransport
from freeloop.outbound.cache import Cache
from freeloop.outbound.cache_policy import CachePolicy
from freeloop.outbound.client import Client
from freeloop.outbound.coalesce import Coalesce
from freeloop.outbound.layers import Stacks
from freeloop.outbound.many import Outcome, as_completed, fetch_all
from freeloop.outbound.redirects import RedirectPolicy, Redirects
from freeloop.outbound.response import Response
from freeloop.outbound.streaming import StreamedResponse
from freeloop.outbound.transport import OutboundRequest, Transport
from freeloop.outbound.url_policy import UrlGuard, UrlPolicy
from freeloop.source import Source

__all__ = [
    "AiohttpTransport",
    "Cache",
    "CachePolicy",
    "Client",
    "Coalesce",
    "OutboundRequest",
    "Outcome",
    "RedirectPolicy",
    "Redirects",
    "Response",
    "Source",
    "Stacks",
    "StreamedResponse",
    "Transport",
    "UrlGuard",
    "UrlPolicy",
    "as_completed",
    "fetch_all",
]
