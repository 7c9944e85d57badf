"""A small external API, bundled: 100 posts and 10 users, so that ``/fetch-data`` works without a network.

It is a real HTTP server on a free loopback port: what the service does with it, it does with any API. May be
imported by ``service`` and by tests.
"""

from freeloop.service.sample.api import SampleApi

__all__ = ["SampleApi"]
