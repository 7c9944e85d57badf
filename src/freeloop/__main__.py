"""``python -m freeloop`` is ``freeloop``."""

from freeloop.cli import main

main()
