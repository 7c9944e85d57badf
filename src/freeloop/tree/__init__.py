"""The await tree: for every task, whose it is, where it stands, what it waits for and who waits for it.

It may import ``scope``; it knows the rooms by the names of their functions only. ``look`` decides who looks
and from where; ``capture`` goes from task to task, with ``coroutines``, ``futures``, ``functions``, ``held``
and ``working``, which read what asyncio and others keep to themselves. ``cycles``, ``lints``, ``waits``,
``forest`` and ``render`` are pure, over ``model``.
"""

from freeloop.tree.look import Tree
from freeloop.tree.model import Deadlock, Finding, Holder, Place, ScopeNode, Snapshot, TaskNode, Wait

__all__ = ["Deadlock", "Finding", "Holder", "Place", "ScopeNode", "Snapshot", "TaskNode", "Tree", "Wait"]
