"""The reference pages, written from the code, and the static site. May be imported by its tests only."""
