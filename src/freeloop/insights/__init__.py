"""Every question about running processes and every action on them, once; it knows no presentation.

``recorder`` keeps what was: a second a sample, and requests that were slow or failed. ``process`` answers
for one process, ``fleet`` for those that serve one app together, ``durable`` for the tasks in their
database. ``answers`` is what they say; ``merge``, ``diagnosis`` and ``forest`` are pure. May be imported by
the console, the kit and what is above it.
"""

from freeloop.insights.answers import Answer, Snapshot
from freeloop.insights.diagnosis import Sentence, diagnose
from freeloop.insights.durable import TaskInsights
from freeloop.insights.fleet import Fleet
from freeloop.insights.process import Insights, Parts
from freeloop.insights.recorder import Sample

__all__ = [
    "Answer",
    "Fleet",
    "Insights",
    "Parts",
    "Sample",
    "Sentence",
    "Snapshot",
    "TaskInsights",
    "diagnose",
]
