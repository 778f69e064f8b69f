"""A program's workdir: what it is of, who may write to it, its files (the README's table says what each holds)."""
