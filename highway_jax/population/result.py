"""What came out of a search."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from highway_jax.population.ranking import Ranking
from highway_jax.population.search import MOMENTS, Search
from highway_jax.population.state import Outcome

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Trained:
    """A trained run.

    Attributes:
      run: its number.
      epoch: how many epochs it had been trained for.
      hyperparameters: by name; of a choice the option itself.
      state: the task's state, host arrays; of `supervised` a `TrainState`.
    """

    run: int
    epoch: int
    hyperparameters: dict[str, Any]
    state: Any

    def __repr__(self) -> str:
        return f"Trained(run {self.run} after {self.epoch} epochs, {self.hyperparameters})"

    @property
    def params(self) -> Any:
        """The model's parameters (`TrainState.params`)."""
        return self.state.params

    @property
    def variables(self) -> Any:
        """All of the model's variables, for `module.apply` of Linen or `nnx.update` of NNX."""
        return self.state.variables


@dataclass(frozen=True)
class Result:
    """What came out of a search, finished or not.

    Attributes:
      search: what was asked for.
      outcome: its numbers and states as they are stored.
      seconds: of training, those of earlier processes included.
      stopped: what asked it to stop, 0 if nothing did.
      finished: whether all is done.
      mesh: the devices that the runs were split over.
    """

    search: Search
    outcome: Outcome
    seconds: float
    stopped: int
    finished: bool
    mesh: Mesh

    def __repr__(self) -> str:
        search, ranking = self.search, self.ranking
        best = int(ranking.order[0])
        leader = f"best {search.rank_by} {ranking.best[best]:.4g} of run {search.runs[best]}"
        if not np.isfinite(ranking.best[best]):
            leader = f"no run had a finite {search.rank_by}"
        state = "finished" if self.finished else f"stopped after {ranking.epochs.max()} epochs"
        return (
            f"Result({search.num_runs} runs of {search.epochs} epochs, {state} in {self.seconds:.1f} s; {leader}, "
            f"{ranking.diverged.sum()} diverged)"
        )

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Every number after every epoch, (runs, epochs), NaN where a run was not trained or it was not measured."""
        return self.outcome.curves

    @functools.cached_property
    def hyperparameters(self) -> dict[str, np.ndarray]:
        """(runs,) values by name; of a choice the options themselves."""
        return self.search.space.readable(self.outcome.columns, self.search.num_runs)

    @functools.cached_property
    def ranking(self) -> Ranking:
        """How the runs are ranked."""
        return self.outcome.ranking(self.search)

    @property
    def best(self) -> Trained:
        """The best run, as it was after its best epoch; where the search was stopped, the best that is at hand.

        Raises:
          ValueError: where no run has had a finite number to be ranked by.
        """
        index, epoch = map(int, self.outcome.best_at)
        if index < 0 or not np.isfinite(self.ranking.best[index]):
            raise ValueError(
                f"no run has had a finite {self.search.rank_by}, so none is the best; {self.ranking.diverged.sum()} of "
                f"{self.search.num_runs} have diverged"
            )
        (state,) = self.outcome.best.values()
        return Trained(int(self.search.runs[index]), epoch, self._of(index), state)

    def run(self, number: int) -> Trained:
        """A run as it was after its last epoch, if `fit` was told `keep="all"`.

        Raises:
          ValueError: for a run that there is not, or whose state was not kept.
        """
        for group, rows in self.outcome.ended.items():
            for place in np.flatnonzero(self.search.runs[rows] == number):
                index = rows[place]
                state = jax.tree.map(lambda leaf, place=place: leaf[place], self.outcome.states[group])
                return Trained(number, int(self.ranking.epochs[index]), self._of(index), state)
        if number not in self.search.runs:
            raise ValueError(f"run is {number!r}; it must be {self.search.runs[0]} to {self.search.runs[-1]}")
        raise ValueError(f"the state of run {number} was not kept; fit keeps those of all runs with keep='all'")

    def _of(self, index: int) -> dict[str, Any]:
        values = {name: values[index] for name, values in self.hyperparameters.items()}
        return {name: v.item() if isinstance(v, np.generic) else v for name, v in values.items()}

    def table(self, by: str = "run") -> "pandas.DataFrame":
        """A row per run, or with `by="configuration"` one per configuration, over its seeds.

        Args:
          by: "run", "configuration", or a hyperparameter: then a row per value that it has, over all runs with it.

        Returns:
          A pandas table. Of each run: its number, hyperparameters, rank, and every number after its best epoch
          (`best_valid_loss`: the best by which it is ranked, and what the others were then) and after its last one
          (`final_valid_loss`); the epochs that it was trained for, and whether it diverged. Of each configuration or
          value: mean and standard deviation (of a sample, n - 1) of those numbers over the runs that have them, how
          many seeds or runs, and how many diverged. Configurations have a rank: those of whose seeds fewest diverged
          come first, then those with the best mean of the best numbers. Functions are shown by their names.

        Raises:
          ValueError: for another `by`.
        """
        import pandas

        if by not in (allowed := ("run", "configuration", *self.hyperparameters)):
            raise ValueError(f"by is {by!r}; it must be one of {', '.join(allowed)}")
        search, ranking, every = self.search, self.ranking, np.arange(self.search.num_runs)
        rank_of = np.empty(search.num_runs, int)
        rank_of[ranking.order] = every + 1
        numbers = {}
        for moment, epoch in zip(MOMENTS, (ranking.best_epoch, ranking.epochs), strict=True):
            for name, curve in self.curves.items():
                numbers[f"{moment}{name}"] = np.where(epoch > 0, curve[every, np.maximum(epoch, 1) - 1], np.nan)
        table = pandas.DataFrame(
            {
                "run": search.runs,
                **({"configuration": search.configurations, "seed": search.own_seeds} if search.seeds > 1 else {}),
                **{name: list(map(_shown, values)) for name, values in self.hyperparameters.items()},
                "rank": rank_of,
                "best_epoch": ranking.best_epoch,
                **numbers,
                "epochs": ranking.epochs,
                "diverged": ranking.diverged,
            }
        )
        if by == "run":
            return table
        of_configurations = by == "configuration"
        # Those of a choice by their positions: values need not have an order, nor functions different names.
        values = search.configurations if of_configurations else self.outcome.columns.get(by, np.zeros(len(every)))
        groups = table.groupby(values, dropna=False)
        spread = groups[list(numbers)].agg(["mean", "std"])
        spread.columns = ["_".join(pair) for pair in spread.columns]
        first = groups[list(self.hyperparameters) if of_configurations else [by]].first()
        counts = groups["diverged"].agg(**{"seeds" if of_configurations else "runs": "size", "diverged": "sum"})
        if of_configurations:
            means = spread[f"{MOMENTS[0]}{search.rank_by}_mean"] * (-1 if search.mode == "max" else 1)
            order = np.lexsort((means, counts["diverged"]))
            counts.loc[counts.index[order], "rank"] = np.arange(1, len(counts) + 1)
            counts = counts.astype({"rank": int})
        return pandas.concat([first, counts, spread], axis=1).rename_axis(by).reset_index(drop=not of_configurations)

    def plot(self) -> "Figure":
        """The best runs' curves, and the distribution of all runs' best values, labelled with what was measured."""
        from highway_jax import plotting

        return plotting.population(self)


def _shown(value: Any) -> Any:
    """A value as a table shows it."""
    return getattr(value, "__name__", value) if callable(value) else value
