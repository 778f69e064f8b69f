"""Signals that ask a program to stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """Whether a signal has asked the program to stop: its number, or 0.

    Attributes:
      signal: what this process has got.
    """

    signal = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take SIGINT and SIGTERM as requests to stop at the next good moment; a second one stops at once."""
    request = StopRequest()

    def note(number: int, frame: Any) -> None:
        if request.signal:
            os._exit(128 + number)
        request.signal = number
        os.write(2, b"stopping after this epoch; once more stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
