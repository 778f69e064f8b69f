"""Short programs to start from: `python -m examples.NAME`."""
