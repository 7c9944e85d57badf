"""Questions to a live or hung process, by a unix socket that a thread of its own answers.

It knows none of the rooms that answer: who opens the socket hands it the questions. It may import ``errors``.
"""

from freeloop.inspection.client import Process, ask, find_processes
from freeloop.inspection.server import Question, open_socket

__all__ = ["Process", "Question", "ask", "find_processes", "open_socket"]
