"""How far a search is, for a bar or a function of one's own."""

import time
from math import isfinite
from typing import NamedTuple, Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from highway_jax.population.result import Result
from highway_jax.population.search import Step

EVERY = 30  # seconds from line to line, where there is no bar


class Progress(NamedTuple):
    """How far a search is.

    Attributes:
      step: how many steps are done.
      plan: all of them.
      result: what there is so far.
    """

    step: int
    plan: list[Step]
    result: Result


class Bar:
    """A bar in a terminal or a notebook; elsewhere, such as in a file, a line now and then."""

    def __init__(self) -> None:
        self._bars = Bars(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
        )
        self._task = self._bars.add_task("", status="")
        self._is_live = self._bars.console.is_terminal or self._bars.console.is_jupyter
        self._begun, self._line, self._next = False, "", 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_live:
            self._bars.stop()
        self._print()

    def __call__(self, progress: Progress) -> None:
        step, plan, result = progress
        if not self._begun and 0 < step < len(plan):
            print(f"resumed after epoch {step} of {len(plan)}", flush=True)
        self._begun, status = True, "compiling"
        if step:
            ranking, search = result.ranking, result.search
            best = ranking.best[ranking.order[0]]
            status = f"best {search.rank_by} {best:.3g}" if isfinite(best) else f"no finite {search.rank_by} yet"
            if ranking.diverged.any():
                status += f", {ranking.diverged.sum()} diverged"
        if self._is_live:
            self._bars.start()
            self._bars.update(self._task, total=len(plan), completed=step, status=status)
            return
        self._line = f"{step}/{len(plan)} epochs, {status}" + f", {result.seconds:.0f} s" * (step > 0)
        if time.monotonic() >= self._next:
            self._print()

    def _print(self) -> None:
        if self._line:
            print(self._line, flush=True)
        self._line, self._next = "", time.monotonic() + EVERY
