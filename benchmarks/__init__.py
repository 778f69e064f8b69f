"""Timings. Nothing here is imported by the library, and nothing in `make test` depends on a clock."""
