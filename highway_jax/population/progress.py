"""How far a search is, for a bar or a function of one's own."""

from typing import NamedTuple, Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from highway_jax.population.result import Result
from highway_jax.population.search import Step


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
    """A bar in a terminal or a notebook; elsewhere one line at the end."""

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        step, plan, result = progress
        status = "compiling"
        self._bars.start()
        if step:
            ranking, search = result.ranking, result.search
            status = f"best {search.rank_by} {ranking.best[ranking.order[0]]:.3g}"
            if ranking.diverged.any():
                status += f", {ranking.diverged.sum()} diverged"
        self._bars.update(self._task, total=len(plan), completed=step, status=status)
