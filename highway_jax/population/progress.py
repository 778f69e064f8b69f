"""The progress of a search, for a bar or a custom function."""

import time
from collections.abc import Iterator
from datetime import timedelta
from math import isfinite
from typing import NamedTuple, Self

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

from highway_jax.population.arguments import check_is, checked_integer
from highway_jax.population.result import Result
from highway_jax.population.search import Step

EVERY = 30  # seconds between lines where no bar can be shown


class Progress(NamedTuple):
    """The progress of a search.

    Attributes:
      step: the number of completed steps; a step is an epoch of the runs in memory.
      plan: all steps of the search.
      result: the result so far.
      saved: whether a checkpoint of this step is being written; always False without a workdir.
    """

    step: int
    plan: list[Step]
    result: Result
    saved: bool

    @property
    def place(self) -> str:
        """The position of the search in words, such as "part 2/3, epoch 1/4"."""
        part, epoch, _ = self.plan[self.step - 1] if self.step else (0, 0, 0)
        parts, epochs = self.plan[-1].part + 1, self.plan[-1].epoch
        return f"part {part + 1}/{parts}, " * (parts > 1) + f"epoch {epoch}/{epochs}"


class Bar:
    """A progress bar in a terminal or a notebook; elsewhere, such as in a log file, a line now and then.

    Args:
      label: a text to show before the progress, such as the name of what is trained.
      every: epochs between lines; None prints a line every 30 seconds. It has no effect on a bar.

    Raises:
      TypeError: if `label` is not a string.
      ValueError: if `every` is not an integer of at least 1.

    Example:
      ```python
      population.fit(task, space, progress=population.Bar(label="highway"), ...)
      ```
    """

    def __init__(self, *, label: str = "", every: int | None = None) -> None:
        check_is("label", label, str, "a text")
        self._label = f"{label}: " if label else ""
        self._every = None if every is None else checked_integer("every", every, 1)
        self._begin()

    def _begin(self) -> None:
        self._bars = Bars(
            BarColumn(),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),  # only the bar shrinks in a narrow terminal
            TextColumn("{task.description}", markup=False),
        )
        self._task = self._bars.add_task(f"{self._label}compiling", total=None)
        console = self._bars.console
        self._is_live = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
        self._times: list[tuple[int, float]] = []  # the number of completed steps, and when
        self._line, self._next = "", 0.0

    def __enter__(self) -> Self:
        if self._is_live:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_live:
            self._bars.stop()
        self._print()
        self._begin()  # it may be used for another search

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        step, now = progress.step, time.monotonic()
        self._times.append((step, now))
        line = self._label + ", ".join(self._said(progress))
        if self._is_live:
            self._bars.start()
            self._bars.update(self._task, total=len(progress.plan), completed=step, description=line)
            return
        self._line = line
        if len(self._times) <= 2 or (step % self._every == 0 if self._every else now >= self._next):
            self._print()

    def _said(self, progress: Progress) -> Iterator[str]:
        """The parts of a line: position, time, best value and lost runs."""
        step, plan, result, _ = progress
        first, ends = len(self._times) == 1, step == len(plan)
        if step:
            yield "going on after " * (first and not ends) + progress.place
        if ends:
            yield f"in {timedelta(seconds=round(result.seconds))}"
        elif first:
            yield "compiling"
        elif step > (begun := self._times[1])[0]:  # most of the first step is compilation
            done, rest = (sum(s.runs for s in steps) for steps in (plan[begun[0] : step], plan[step:]))
            yield f"{timedelta(seconds=round((self._times[-1][1] - begun[1]) * rest / done))} left"
        if step:
            best = result.ranking.best[result.ranking.order[0]]
            yield f"best {result.rank_by} {best:.3g}" if isfinite(best) else f"no finite {result.rank_by} yet"
            if diverged := result.ranking.diverged.sum():
                yield f"{diverged} diverged"
            _, epoch, runs = plan[step - 1]
            if runs < (all_runs := plan[step - epoch].runs):
                yield f"{runs} of {all_runs} runs left"

    def _print(self) -> None:
        if self._line:
            print(self._line, flush=True)
        self._line, self._next = "", time.monotonic() + EVERY
