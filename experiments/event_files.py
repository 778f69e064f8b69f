"""Metrics as TensorBoard event files."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.cli import UserError
from experiments.progress import Stats


def require() -> None:
    """Refuse to begin where event files cannot be written.

    Raises:
      UserError: naming the extra to install.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            "config.tensorboard is True, which needs tensorboardX; install it with: pip install -e '.[tensorboard]'"
        )


@contextmanager
def writer(directory: Path, epoch: int, wanted: bool) -> Iterator[Callable[[int, Stats], None]]:
    """Yields `log(epoch, stats)`; what an earlier process wrote after `epoch` is superseded."""
    if not wanted:
        yield lambda epoch, stats: None
        return
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(directory), purge_step=epoch + 1) as events:

        def log(epoch: int, stats: Stats) -> None:
            for name, value in dataclasses.asdict(stats).items():
                if math.isfinite(value):  # a curve has nothing to show where all runs have diverged
                    events.add_scalar(name, value, epoch)

        yield log
