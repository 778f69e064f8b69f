"""What came out of a search."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from highway_jax.population.ranking import Ranking, rank
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


@dataclass(frozen=True, eq=False)
class Work:
    """What a result was made of in this process: the states of its runs, and what it takes to train them again."""

    search: Search
    outcome: Outcome
    mesh: Mesh


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """What came out of a search, finished or not: from `fit`, or the numbers alone from `load`.

    Attributes:
      runs: (runs,) the runs' numbers, ascending.
      hyperparameters: (runs,) values by name; of a choice the options themselves.
      curves: every number after every epoch, (runs, epochs), NaN where a run was not trained or it was not measured.
      rank_by: the number by which runs are ranked.
      mode: "min" if lower is better, or "max".
      epochs: how many the runs are trained for, unless they are stopped.
      seeds: how many runs each configuration has.
      seconds: of training, those of earlier processes included.
      stopped: what asked the search to stop, 0 if nothing did.
      finished: whether all is done.
      work: what `fit` made it of; None of a result that was loaded.
    """

    runs: np.ndarray
    hyperparameters: Mapping[str, np.ndarray]
    curves: Mapping[str, np.ndarray]
    rank_by: str
    mode: str
    epochs: int
    seeds: int = 1
    seconds: float = 0.0
    stopped: int = 0
    finished: bool = True
    work: Work | None = None

    @classmethod
    def of(cls, work: Work, seconds: float, stopped: int, finished: bool) -> Self:
        """What a search has come to."""
        search, outcome = work.search, work.outcome
        return cls(
            runs=search.runs,
            hyperparameters=search.space.readable(outcome.columns, search.num_runs),
            curves=outcome.curves,
            rank_by=search.rank_by,
            mode=search.mode or "min",
            epochs=search.epochs,
            seeds=search.seeds,
            seconds=seconds,
            stopped=stopped,
            finished=finished,
            work=work,
        )

    def __repr__(self) -> str:
        ranking = self.ranking
        best = int(ranking.order[0])
        leader = f"best {self.rank_by} {ranking.best[best]:.4g} of run {self.runs[best]}"
        if not np.isfinite(ranking.best[best]):
            leader = f"no run had a finite {self.rank_by}"
        state = "finished" if self.finished else f"stopped after {ranking.epochs.max()} epochs"
        return (
            f"Result({self.num_runs} runs of {self.epochs} epochs, {state} in {self.seconds:.1f} s; {leader}, "
            f"{ranking.diverged.sum()} diverged)"
        )

    @property
    def num_runs(self) -> int:
        """How many runs there are."""
        return len(self.runs)

    @functools.cached_property
    def ranking(self) -> Ranking:
        """How the runs are ranked."""
        return rank(self.curves, self.rank_by, self.mode)

    def index(self, run: int) -> int:
        """The place of a run in the arrays, by its number.

        Raises:
          ValueError: for a run that there is not.
        """
        found = np.flatnonzero(self.runs == run)
        if not len(found):
            raise ValueError(f"run is {run!r}; it must be {self.runs[0]} to {self.runs[-1]}")
        return int(found[0])

    def curve(self, run: int) -> np.ndarray:
        """(epochs,) the number by which runs are ranked, of the run of that number, as long as it was trained."""
        index = self.index(run)
        return self.curves[self.rank_by][index, : self.ranking.epochs[index]]

    def last(self, name: str) -> np.ndarray:
        """(runs,) a number after every run's last epoch; NaN where it was not measured then."""
        return self._after(self.ranking.epochs, name)

    def _after(self, epochs: np.ndarray, name: str) -> np.ndarray:
        """(runs,) a number after an epoch of each run's own; NaN after epoch 0."""
        values = self.curves[name][np.arange(self.num_runs), np.maximum(epochs, 1) - 1]
        return np.where(epochs > 0, values, np.nan)

    @property
    def best(self) -> Trained:
        """The best run, as it was after its best epoch; where the search was stopped, the best that is at hand.

        Raises:
          ValueError: where no run has had a finite number to be ranked by, or the result was loaded.
        """
        work = self._work()
        index, epoch = map(int, work.outcome.best_at)
        if index < 0 or not np.isfinite(self.ranking.best[index]):
            raise ValueError(
                f"no run has had a finite {self.rank_by}, so none is the best; {self.ranking.diverged.sum()} of "
                f"{self.num_runs} have diverged"
            )
        (state,) = work.outcome.best.values()
        return Trained(int(self.runs[index]), epoch, self.hyperparameters_of(index), state)

    def run(self, number: int) -> Trained:
        """A run as it was after its last epoch, if `fit` was told `keep="all"`.

        Raises:
          ValueError: for a run that there is not, or whose state was not kept.
        """
        outcome, index = self._work().outcome, self.index(number)
        for group, rows in outcome.ended.items():
            for place in np.flatnonzero(rows == index):
                state = jax.tree.map(lambda leaf, place=place: leaf[place], outcome.states[group])
                return Trained(number, int(self.ranking.epochs[index]), self.hyperparameters_of(index), state)
        raise ValueError(f"the state of run {number} was not kept; fit keeps those of all runs with keep='all'")

    def _work(self) -> Work:
        if self.work is None:
            raise ValueError("a loaded result has no states; fit, called again with the same workdir, gives them")
        return self.work

    def hyperparameters_of(self, index: int) -> dict[str, Any]:
        """The hyperparameters of the run at a place in the arrays."""
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
        ranking = self.ranking
        numbers: dict[str, np.ndarray] = {}
        for moment, epochs in zip(MOMENTS, (ranking.best_epoch, ranking.epochs), strict=True):
            numbers |= {f"{moment}{name}": self._after(epochs, name) for name in self.curves}
        configurations = self.runs // self.seeds
        paired = {"configuration": configurations, "seed": self.runs % self.seeds} if self.seeds > 1 else {}
        table = pandas.DataFrame(
            {
                "run": self.runs,
                **paired,
                **{name: list(map(_shown, values)) for name, values in self.hyperparameters.items()},
                "rank": ranking.ranks,
                "best_epoch": ranking.best_epoch,
                **numbers,
                "epochs": ranking.epochs,
                "diverged": ranking.diverged,
            }
        )
        if by == "run":
            return table
        of_configurations = by == "configuration"
        groups = table.groupby(configurations if of_configurations else self._places(by), dropna=False)
        spread = groups[list(numbers)].agg(["mean", "std"])
        spread.columns = ["_".join(pair) for pair in spread.columns]
        first = groups[list(self.hyperparameters) if of_configurations else [by]].first()
        counts = groups["diverged"].agg(**{"seeds" if of_configurations else "runs": "size", "diverged": "sum"})
        if of_configurations:
            means = spread[f"{MOMENTS[0]}{self.rank_by}_mean"] * (-1 if self.mode == "max" else 1)
            order = np.lexsort((means, counts["diverged"]))
            counts.loc[counts.index[order], "rank"] = np.arange(1, len(counts) + 1)
            counts = counts.astype({"rank": int})
        return pandas.concat([first, counts, spread], axis=1).rename_axis(by).reset_index(drop=not of_configurations)

    def _places(self, name: str) -> np.ndarray:
        """What tells the values of a hyperparameter apart: a choice's positions, as options need have no order."""
        if self.work is None:
            return self.hyperparameters[name]
        return self.work.outcome.columns.get(name, np.zeros(self.num_runs))

    def curves_table(self) -> "pandas.DataFrame":
        """The curves as a table: a row per run and epoch that it was trained for, a column per number."""
        import pandas

        trained = np.arange(len(next(iter(self.curves.values())).T)) < self.ranking.epochs[:, None]
        index, epoch = np.nonzero(trained)
        numbers = {name: curve[index, epoch] for name, curve in self.curves.items()}
        return pandas.DataFrame({"run": self.runs[index], "epoch": epoch + 1, **numbers})

    def plot(self) -> "Figure":
        """All runs' curves behind the best one's, and all runs' best values by rank, labelled by what was measured."""
        from highway_jax import plotting

        return plotting.population(self)


def _shown(value: Any) -> Any:
    """A value as a table shows it."""
    return getattr(value, "__name__", value) if callable(value) else value
