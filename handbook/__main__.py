"""python3 run.py docs: write what is written from the code and from measurements, then build the site.

``--write`` leaves the site out. The site is in build/site; open index.html through any web server.
"""

from __future__ import annotations

import argparse
import sys

from handbook import generator, measured, reference


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python3 run.py docs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the Markdown only, build no site")
    arguments = parser.parse_args()
    for name in [*(f"docs/reference/{name}" for name in reference.write()), *measured.write()]:
        sys.stderr.write(f"written: {name}\n")
    if not arguments.write:
        sys.stderr.write(f"built: {generator.build()}\n")


if __name__ == "__main__":
    main()
