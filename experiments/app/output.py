"""Where a program's output goes."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console

NARROWEST = 80  # a terminal narrower than this wraps the lines of tables; they keep their numbers


class Unfailing:
    """A stream on which work never ends: what it cannot take is lost.

    Attributes:
      failure: why something is lost, if anything is. That nobody reads on (`| head`) is no failure.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.failure = stream, ""

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Have it written now."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.failure = error.strerror or str(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # all the rest, and what waits to be written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unfailing() -> Iterator[Any]:
    """Make stdout and stderr such streams for a while; yields stdout, or None where there is none."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):  # what it cannot encode, it escapes
            stream.reconfigure(errors="backslashreplace")
    # A closed one is None, to which `print` prints nothing.
    streams: Any = [stream and Unfailing(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield streams[0]
    finally:
        sys.stdout, sys.stderr = before


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def ignore_output() -> None:
    """Send what is printed from now on nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Output(Console):
    """The terminal, or wherever else output goes; paths and names are printed as they are."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True)
        if self.width < NARROWEST:
            self.width = NARROWEST
