"""Benchmarks of lighter_freezers against named peers, one module each: `python -m benchmarks.NAME --help`."""
