"""Sync code off the loop, in threads with limits of their own.

Any room above may use it; it imports only ``errors`` and ``scope``.
"""

from freeloop.threads.adoption import Threads, adopt_sync_routes, open_threads
from freeloop.threads.pool import ThreadPool

__all__ = ["ThreadPool", "Threads", "adopt_sync_routes", "open_threads"]
