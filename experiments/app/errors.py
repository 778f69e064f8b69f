"""How mistakes are told."""

import re
import sys
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend; the message is one line naming what was given and what is allowed."""


class Interrupted(Exception):
    """A signal has stopped the program, in order.

    Args:
      signal: its number.
      where: how far the work was.
    """

    def __init__(self, signal: int, where: str):
        super().__init__(where)
        self.signal = signal


def shown(value: Any, most: int = 100) -> str:
    """A value as Python writes it, cut if that is long."""
    try:
        return shortened(repr(value), most)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or nested without end
        return f"an object of type {type(value).__name__} that is too large to show"


def shortened(text: str, most: int = 100) -> str:
    """Text without its middle, if it is long."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}...{text[-most // 3 :]}"


def as_line(text: str) -> str:
    """Text in one line: what cannot be printed is escaped, and no word fills the screen."""
    printable = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return re.sub(r"\S{500,}", lambda word: shortened(word[0], 200), printable)


def warn(text: str) -> None:
    """Say on stderr what went wrong without stopping the work."""
    print(f"warning: {as_line(text)}", file=sys.stderr, flush=True)
