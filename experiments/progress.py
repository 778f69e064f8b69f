"""What a program shows while it works and when it is done."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.cli import ignore_output, say
from highway_jax import population


class Output(Console):
    """The terminal, or wherever else output goes; paths and names are printed as they are.

    That nobody reads on (`| head`) is no reason to stop working.
    """

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Print to nowhere from now on."""
        ignore_output()


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
                TimeRemainingColumn(),
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
        if self._bars:
            self._bars.reset(self._tasks[network], total=len(plan), completed=step)
        elif step:
            say(f"{network}: going on after {self._where()}")

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
        pace = ""
        if step > self._first[0]:
            done, since, total = (self._work[i - 1] for i in (step, self._first[0], len(self._plan)))
            seconds = (now - self._first[1]) / (done - since)
            status += f", {self._batches / seconds:,.0f} steps/s"
            left = seconds * (total - done + total * (len(self._networks) - 1 - self._networks.index(network)))
            pace = f", {duration(left)} left" * (left > 0)
        if self._bars:
            self._bars.update(self._tasks[network], completed=step, status=status)
        elif step % (self._every or max(1, len(self._plan) // 10)) == 0 or step in (1, len(self._plan)):
            say(f"{network}: {self._where()}, {status}{pace}")


def duration(seconds: float) -> str:
    """Such as "42 s", "17 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def print_summary(summary: Mapping[str, Mapping[str, Any]], console: Output) -> None:
    """Print `summary.json` as a table, a column per network."""
    table = Table(title="lowest mean training loss of an epoch (nats)", title_justify="left")
    table.add_column("")
    for network in summary:
        table.add_column(network, justify="right")
    top = min(10, *(s["num_runs"] for s in summary.values()))
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "best run": lambda s: _number(s["best_loss"], ".2e"),
        f"mean of the best {top}": lambda s: _number(s["top10_mean_loss"], ".2e"),
        "median": lambda s: _number(s["median_loss"], ".2e"),
        "diverged runs": lambda s: f"{s['diverged']} of {s['num_runs']}",
        "best run's test accuracy": lambda s: _number(s["best_run_test_accuracy"], ".2%"),
    }
    for label, cell in rows.items():
        table.add_row(label, *map(cell, summary.values()))
    console.print(table)
    if any(s["top10_mean_loss"] is None for s in summary.values()):
        console.print(f"-: fewer than {top} runs ever had a finite loss")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
