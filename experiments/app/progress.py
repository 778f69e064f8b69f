"""What a program shows while it works and when it is done."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from experiments.app.output import Output, say
from experiments.app.words import duration
from highway_jax import population
from highway_jax.population import Result


@dataclasses.dataclass(frozen=True)
class Stats:
    """What is said of a population after an epoch; losses in nats.

    Attributes:
      best_loss: the lowest that any run has had.
      top10_mean_loss: the mean of the ten best runs' lowest.
      median_loss: the median of all runs' lowest.
      diverged: runs that have diverged.
    """

    best_loss: float
    top10_mean_loss: float
    median_loss: float
    diverged: int

    @classmethod
    def of(cls, curves: np.ndarray) -> Self:
        """Of (runs, epochs) training losses; runs that have not begun do not count."""
        ranking = population.rank(curves[~np.isnan(curves).all(axis=1)])
        best = float(ranking.best[ranking.order[0]])
        return cls(best, ranking.mean_of_best(10), ranking.median(), int(ranking.diverged.sum()))


class Monitor:
    """Shows how far the work is: a live bar per network on a terminal, plain lines elsewhere.

    Args:
      networks: the kinds of network, trained one after another.
      epochs: that a run is trained for at most.
      batches: in an epoch.
      log_every: epochs between plain lines; None for about ten lines.
      console: where it is shown.
    """

    def __init__(self, networks: tuple[str, ...], epochs: int, batches: int, log_every: int | None, console: Output):
        self._networks, self._epochs, self._batches, self._every = networks, epochs, batches, log_every
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:8}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("epochs"),
                TextColumn("{task.fields[status]}"),
                console=console,
            )
            self._tasks = {network: self._bars.add_task(network, total=epochs, status="") for network in networks}

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars:
            self._bars.stop()

    def begin(self, network: str, plan: Sequence[int], step: int) -> None:
        """A network's training begins, or goes on, after `step` of the steps in which `plan` runs are trained."""
        self._network, self._plan, self._step = network, plan, step
        self._work = list(itertools.accumulate(plan))  # epochs of single runs
        self._first: tuple[int, float] | None = None
        status = "compiling" * (step < len(plan))
        if self._bars:
            self._bars.reset(self._tasks[network], total=len(plan), completed=step, status=status)
        elif step:
            say(f"{network}: going on after {self._where()}" + (status and f", {status}"))
        else:
            say(f"{network}: {status}")

    def _where(self) -> str:
        group, epoch = divmod(self._step - 1, self._epochs)
        groups = len(self._plan) // self._epochs
        return f"part {group + 1}/{groups}, " * (groups > 1) + f"epoch {epoch + 1}/{self._epochs}"

    @property
    def place(self) -> str:
        """How far the work is, in words."""
        return f"{self._where()} of {self._network}"

    def move(self, network: str, step: int, stats: Stats) -> None:
        """A step of a network is done."""
        now, self._step = time.monotonic(), step
        self._first = self._first or (step, now)  # the time of the first is mostly the compiler's
        status = f"best loss {stats.best_loss:.2e}, {stats.diverged} diverged"
        training, beginning = (self._plan[i] for i in (step - 1, (step - 1) // self._epochs * self._epochs))
        status += f", {training} left" * (training < beginning)
        if step > self._first[0]:
            done, since, total = (self._work[i - 1] for i in (step, self._first[0], len(self._plan)))
            seconds = (now - self._first[1]) / (done - since)
            status += f", {self._batches / seconds:,.0f} steps/s"
            left = seconds * (total - done + total * (len(self._networks) - 1 - self._networks.index(network)))
            status += f", {duration(left)} left" * (left > 0)
        if self._bars:
            self._bars.update(self._tasks[network], completed=step, status=status)
        elif step % (self._every or max(1, len(self._plan) // 10)) == 0 or step in (1, len(self._plan)):
            say(f"{network}: {self._where()}, {status}")


def print_summary(results: Mapping[str, Result], console: Output) -> None:
    """Print what came out as a table, a column per network."""
    table = Table(title="lowest mean training loss of an epoch (nats)", title_justify="left")
    table.add_column("")
    for network in results:
        table.add_column(network, justify="right")
    top = min(10, *(result.num_runs for result in results.values()))
    rows: dict[str, Callable[[Result], str]] = {
        "best run": lambda r: _number(r.ranking.best[r.ranking.order[0]], ".2e"),
        f"mean of the best {top}": lambda r: _number(r.ranking.mean_of_best(10), ".2e"),
        "median": lambda r: _number(r.ranking.median(), ".2e"),
        "diverged runs": lambda r: f"{r.ranking.diverged.sum()} of {r.num_runs}",
        "best run's test accuracy": lambda r: _number(r.last("test_accuracy")[r.ranking.order[0]], ".2%"),
    }
    for label, cell in rows.items():
        table.add_row(label, *map(cell, results.values()))
    console.print(table)
    if any(np.isinf(result.ranking.mean_of_best(10)) for result in results.values()):
        console.print(f"-: fewer than {top} runs ever had a finite loss")


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "-"
