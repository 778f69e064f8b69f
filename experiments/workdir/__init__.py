"""A program's workdir: what it is of, who may write to it, its files (docs/search.md says what each holds)."""
