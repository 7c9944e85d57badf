"""Benchmarks: ours and its peers in one run, alternating, rendered into the docs by the same command."""
