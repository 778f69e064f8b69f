"""Benchmarks. The library imports nothing from here, and no test depends on a timing."""
