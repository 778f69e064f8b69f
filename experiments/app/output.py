"""The programs' output."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console

NARROWEST = 80  # columns; a narrower terminal wraps the lines of tables, so that no numbers are cut


class Unfailing:
    """A stream whose failures never stop the work: output that cannot be written is lost.

    Attributes:
      failure: why output was lost, or "". A reader that closes its end early, such as `| head`, is not a failure.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.failure = stream, ""

    def write(self, text: str) -> int:
        """Write the text if possible."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.failure = error.strerror or str(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # for later output, and what is still buffered

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unfailing() -> Iterator[Any]:
    """Make stdout and stderr `Unfailing` in this context; yields stdout, or None if it is closed."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):  # escape what the encoding lacks
            stream.reconfigure(errors="backslashreplace")
    # A closed stream is None; `print` then prints nothing.
    streams: Any = [stream and Unfailing(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield streams[0]
    finally:
        sys.stdout, sys.stderr = before


def say(text: str) -> None:
    """Print a line and flush it."""
    print(text, flush=True)


def ignore_output() -> None:
    """Discard everything that is printed from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Output(Console):
    """The terminal, or wherever stdout goes; paths and names are printed without markup."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True)
        if self.width < NARROWEST:
            self.width = NARROWEST
