"""Event files for TensorBoard: a population's metrics by epoch, every run's hyperparameters and outcomes.

They follow from what is kept elsewhere. So one that cannot be written is warned of, and the work goes on.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from experiments.app import errors
from highway_jax import population
from highway_jax.files import first_line
from highway_jax.population import Result
from highway_jax.stack.kinds import KINDS

BEST = 10  # runs of each network whose curves are written
RUNS, CURVES = "runs", "best"  # a directory each, below a network's
FLUSH_SECONDS = 10


class Writer:
    """Writes what TensorBoard shows of a kind of network.

    Args:
      directory: the workdir.
      network: the kind of network.
      wanted: whether anything is to be written.
    """

    def __init__(self, directory: Path, network: str, wanted: bool):
        self._directory, self._network, self._wanted = directory / "tensorboard" / network, network, wanted
        self._events: _Events | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._events:
            with self._warning():
                self._events.close()

    def begin(self, epoch: int) -> None:
        """Training begins, or goes on, after an epoch; what an earlier process wrote after it is superseded."""
        if self._wanted:
            with self._warning():
                self._events = _Events(self._directory)
                self._events.supersede(epoch + 1)

    def log(self, epoch: int, curves: np.ndarray) -> None:
        """An epoch is done; (runs, epochs) training losses, of which runs that have not begun do not count."""
        if self._wanted and self._events:
            ranking = population.rank(curves[~np.isnan(curves).all(axis=1)])
            stats = {
                "best_loss": ranking.best[ranking.order[0]],
                "top10_mean_loss": ranking.mean_of_best(10),
                "median_loss": ranking.median(),
                "diverged": ranking.diverged.sum(),
            }
            with self._warning():
                self._events.scalars(epoch, stats)
                self._events.flush_now_and_then()

    def write_runs(self, result: Result) -> None:
        """Write a session of the HParams view for every run that has begun, and the curves of the best runs.

        TensorBoard makes one table of all sessions, whatever their hyperparameters; curves stand in other directories,
        since whatever a session's own holds is a column of that table.
        """
        if not self._wanted:
            return
        from tensorboardX.summary import hparams

        ranking = result.ranking
        accuracies = {
            f"final_{name}": result.last(name)
            for name in result.curves
            if name.endswith("_accuracy") and not name.startswith("train_")
        }
        with self._warning():
            for name in RUNS, CURVES:  # what there was at an earlier stop
                shutil.rmtree(self._directory / name, ignore_errors=True)
            for rank, index in enumerate(ranking.order.tolist(), start=1):
                epochs = int(ranking.epochs[index])
                if not epochs:
                    continue
                run = f"run{result.runs[index]}"
                outcomes = {
                    "best_loss": ranking.best[index],
                    "best_epoch": ranking.best_epoch[index],
                    "diverged": ranking.diverged[index],
                    **{name: values[index] for name, values in accuracies.items()},
                }
                values = {"network": self._network, **result.hyperparameters_of(index)}
                if not KINDS[self._network].gated:
                    values.pop("transform_bias", None)  # drawn, but of no effect
                _, start, end = hparams(values, {})
                with contextlib.closing(_Events(self._directory / RUNS / run)) as events:
                    events.add(summary=start)
                    events.add(summary=end)
                    events.scalars(epochs, {f"run/{name}": value for name, value in outcomes.items()})
                if rank <= BEST:
                    with contextlib.closing(_Events(self._directory / CURVES / f"{rank:02}_{run}")) as events:
                        for epoch in range(epochs):
                            events.scalars(epoch + 1, {name: c[index, epoch] for name, c in result.curves.items()})

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._wanted:
                errors.warn(f"{self._directory}: event files cannot be written: {first_line(error)}")
            self._wanted = False  # once said is enough


class _Events:
    """An event file, in tensorboardX's form.

    Its SummaryWriter writes in a thread, and waits for it for ever once the disk is full.
    """

    def __init__(self, directory: Path):
        from tensorboardX.record_writer import RecordWriter

        directory.mkdir(parents=True, exist_ok=True)
        path = directory.absolute() / f"events.out.tfevents.{time.time():017.6f}"
        self._file, self._next = RecordWriter(str(path)), 0.0
        self.add(file_version="brain.Event:2")

    def add(self, **fields: Any) -> None:
        """Add an event."""
        from tensorboardX.proto.event_pb2 import Event

        self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def supersede(self, step: int) -> None:
        """From this step on, what earlier files hold does not count."""
        from tensorboardX.proto.event_pb2 import SessionLog

        self.add(step=step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Add numbers by name; those that are not finite have no place in a curve."""
        from tensorboardX.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=n, simple_value=float(v)) for n, v in values.items() if math.isfinite(v)]
        self.add(step=step, summary=Summary(value=found))

    def flush_now_and_then(self) -> None:
        """Let TensorBoard see what was added."""
        if time.monotonic() > self._next:
            self._file.flush()
            self._next = time.monotonic() + FLUSH_SECONDS

    def close(self) -> None:
        """Close the file."""
        self._file.close()
