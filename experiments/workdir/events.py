"""Event files for TensorBoard: a population's metrics by epoch, every run's hyperparameters and outcomes.

They are derived from other results, so a file that cannot be written is only a warning.
"""

import contextlib
import functools
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.app import errors
from experiments.workdir.contents import used
from highway_jax import population
from highway_jax.population import Progress, Result

BEST = 10  # number of best runs of each network whose curves are written
Fields = dict[str, Any]  # of an event

_warn_once = functools.cache(errors.warn)


def write(directory: Path, network: str, progress: Progress) -> None:
    """Write the event files of a kind of network; those of single runs only once training has ended or stopped.

    TensorBoard shows all HParams sessions in one table, with a column for every tag in a session's directory. Curves
    are therefore written to other directories.

    Args:
      directory: the workdir.
      network: the kind of network.
      progress: how far its training has come.
    """
    place, result = directory / "tensorboard" / network, progress.result
    ranking, name = result.ranking, f"events.out.tfevents.{progress.step}"
    try:
        _write(place / "events.out.tfevents.0", _of_population(progress))
        if not (result.finished or result.stopped):
            return
        for part in "runs", "best":  # left by an earlier stop
            shutil.rmtree(place / part, ignore_errors=True)
        for index, rank in enumerate(ranking.ranks.tolist()):
            run = f"run{result.runs[index]}"
            if ranking.epochs[index]:
                _write(place / "runs" / run / name, _session(network, result, index))
            if ranking.epochs[index] and rank <= BEST:
                _write(place / "best" / f"{rank:02}_{run}" / name, _curves(result, index))
    except OSError as error:
        _warn_once(f"{directory / 'tensorboard'}: event files cannot be written: {error.strerror or error}")


def _of_population(progress: Progress) -> Iterator[Fields]:
    """The population's metrics after every step, over the runs that have begun."""
    step, plan, result, _ = progress
    curves, size = result.curves[result.rank_by], plan[0].runs
    extremes = np.stack([f.accumulate(curves, axis=1) for f in (np.fmin, np.fmax)], axis=-1)  # enough for a ranking
    epochs = np.zeros(result.num_runs, int)
    for number, (part, epoch, _) in enumerate(plan[:step], start=1):
        epochs[part * size : (part + 1) * size] = epoch
        begun = np.flatnonzero(epochs)
        ranking = population.rank(extremes[begun, epochs[begun] - 1])
        numbers = {
            "best_loss": ranking.best[ranking.order[0]],
            "top10_mean_loss": ranking.mean_of_best(10),
            "median_loss": ranking.median(),
            "diverged": ranking.diverged.sum(),
        }
        yield _scalars(number, numbers)


def _session(network: str, result: Result, index: int) -> Iterator[Fields]:
    """The hyperparameters and outcomes of a run, for the HParams view."""
    from tensorboardX.summary import hparams

    _, start, end = hparams({"network": network, **used(network, result.hyperparameters_of(index))}, {})
    yield {"summary": start}
    yield {"summary": end}
    ranking = result.ranking
    outcomes = {
        "best_loss": ranking.best[index],
        "best_epoch": ranking.best_epoch[index],
        "diverged": ranking.diverged[index],
    }
    for name in result.curves:
        if name.endswith("_accuracy") and not name.startswith("train_"):
            outcomes[f"final_{name}"] = result.last(name)[index]
    yield _scalars(int(ranking.epochs[index]), {f"run/{name}": value for name, value in outcomes.items()})


def _curves(result: Result, index: int) -> Iterator[Fields]:
    """The curves of a run."""
    for epoch in range(result.ranking.epochs[index]):
        yield _scalars(epoch + 1, {name: values[index, epoch] for name, values in result.curves.items()})


def _scalars(step: int, values: Mapping[str, Any]) -> Fields:
    """An event with the finite ones of some numbers, by tag."""
    from tensorboardX.proto.summary_pb2 import Summary

    found = [Summary.Value(tag=n, simple_value=float(v)) for n, v in values.items() if math.isfinite(v)]
    return {"step": step, "summary": Summary(value=found)}


def _write(path: Path, events: Iterable[Fields]) -> None:
    """Write an event file, or rewrite it with more events; a running TensorBoard continues after the ones it has read.

    tensorboardX's own file writer works in a thread, and hangs once the disk is full.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(RecordWriter(str(path.absolute()))) as file:
        for fields in ({"file_version": "brain.Event:2"}, *events):
            file.write(Event(wall_time=time.time(), **fields).SerializeToString())
