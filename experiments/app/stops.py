"""Signals that ask a program to stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """Whether a signal has asked the program to stop.

    Attributes:
      signal: the number of the signal that this process has received, or 0.
    """

    signal = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Treat SIGINT and SIGTERM as requests to stop after the current epoch; a second signal stops at once."""
    request = StopRequest()

    def note(number: int, frame: Any) -> None:
        if request.signal:
            os._exit(128 + number)
        request.signal = number
        os.write(2, b"stopping after this epoch; a second signal stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
