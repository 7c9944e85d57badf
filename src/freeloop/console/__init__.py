"""The console: pages that show what insights tell, live, and act on it. May be imported by the kit.

``app`` has the routes, ``pages`` says what each page reads, ``render`` makes HTML of it, ``access`` decides
who may, ``texts`` is the catalogue, ``beside`` puts it next to the app.
"""

from freeloop.console.app import Console
from freeloop.console.beside import Beside

__all__ = ["Beside", "Console"]
