"""How far a search is, for a bar or a function of one's own."""

import time
from datetime import timedelta
from math import isfinite
from typing import NamedTuple, Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
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
      saved: whether a checkpoint of it has begun; none has without a workdir.
    """

    step: int
    plan: list[Step]
    result: Result
    saved: bool


class Bar:
    """A bar in a terminal or a notebook; elsewhere, such as in a file, a line now and then."""

    def __init__(self) -> None:
        self._bars = Bars(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}"),
        )
        self._task = self._bars.add_task("", status="")
        self._is_live = self._bars.console.is_terminal or self._bars.console.is_jupyter
        self._begun, self._line, self._next = False, "", 0.0
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_live:
            self._bars.stop()
        self._print()

    def __call__(self, progress: Progress) -> None:
        step, plan, result, _ = progress
        if not self._begun and 0 < step < len(plan):
            print(f"resumed after epoch {step} of {len(plan)}", flush=True)
        said = []
        if step:
            ranking = result.ranking
            best = ranking.best[ranking.order[0]]
            said.append(f"best {result.rank_by} {best:.3g}" if isfinite(best) else f"no finite {result.rank_by} yet")
            if ranking.diverged.any():
                said.append(f"{ranking.diverged.sum()} diverged")
        if self._begun:
            said += self._left(step, plan)
        elif step < len(plan):
            said.append("compiling")
        self._begun = True
        if self._is_live:
            self._bars.start()
            self._bars.update(self._task, total=len(plan), completed=step, status=", ".join(said))
            return
        said += [f"{result.seconds:.0f} s"] * (step > 0)
        self._line = ", ".join([f"{step}/{len(plan)} epochs", *said])
        if time.monotonic() >= self._next:
            self._print()

    def _left(self, step: int, plan: list[Step]) -> list[str]:
        """The time left, once there are two steps to go by: rich's own estimate is gone after 30 seconds."""
        now = time.monotonic()
        self._first = self._first or (step, now)  # the time of the first is mostly the compiler's
        first, since = self._first
        done, rest = (sum(step.runs for step in part) for part in (plan[first:step], plan[step:]))
        return [f"{timedelta(seconds=round((now - since) * rest / done))} left"] if done and rest else []

    def _print(self) -> None:
        if self._line:
            print(self._line, flush=True)
        self._line, self._next = "", time.monotonic() + EVERY
