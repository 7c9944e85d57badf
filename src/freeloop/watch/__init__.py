"""Sees what blocks the event loop: which line, for whom, why, and what to do. Imports scope and metrics only.

``heartbeat`` beats on the loop and puts an ``alarm`` off; where that goes off, ``probe`` looks at the loop
from a thread of its own, with ``clocks`` and, for what holds the GIL, ``backstop``; ``view`` is what they
see. ``verdict`` and ``starvation`` decide without I/O; ``place``, ``blame``, ``callee`` and ``advice`` say
which line, whose, what it called, and what helps.
``findings`` keeps it, and ``watchdog`` puts all that together.
"""

from freeloop.watch.findings import Finding
from freeloop.watch.watchdog import Watch, watch

__all__ = ["Finding", "Watch", "watch"]
