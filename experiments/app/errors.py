"""Errors and warnings for the user, one line each."""

import re
import sys
from typing import Any


class UserError(Exception):
    """A mistake that the user can correct; the message is one line that names the value given and what is allowed."""


class Interrupted(Exception):
    """A signal has stopped the program after a checkpoint.

    Args:
      signal: its number.
      where: how far the work had come.
    """

    def __init__(self, signal: int, where: str):
        super().__init__(where)
        self.signal = signal


def shown(value: Any, most: int = 100) -> str:
    """The repr of a value, shortened if it is long."""
    try:
        return shortened(repr(value), most)
    except (ValueError, RecursionError):  # an integer with thousands of digits, or endless nesting
        return f"an object of type {type(value).__name__} that is too large to show"


def shortened(text: str, most: int = 100) -> str:
    """Text, without its middle if it is long."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}...{text[-most // 3 :]}"


def as_line(text: str) -> str:
    """Text as one line, with unprintable characters escaped and very long words shortened."""
    printable = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return re.sub(r"\S{500,}", lambda word: shortened(word[0], 200), printable)


def warn(text: str) -> None:
    """Print a warning to stderr; the work continues."""
    print(f"warning: {as_line(text)}", file=sys.stderr, flush=True)
