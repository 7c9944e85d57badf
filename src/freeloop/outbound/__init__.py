"""Calls to external APIs: one shared client, one deadline a call, one tree of errors.

A call goes ``Client`` → (layers) → ``Transport``. A layer is a :class:`Transport` around a transport, so that
the client, its callers and the tests know one port only. May be imported by any room above; imports
``errors`` only.
"""

from freeloop.outbound.aiohttp_transport import AiohttpTransport
from freeloop.outbound.client import Client
from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest, Transport

__all__ = ["AiohttpTransport", "Client", "OutboundRequest", "Response", "Transport"]
