"""The result of a search."""

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
      run: the number of the run.
      epoch: the number of epochs that it had been trained for.
      hyperparameters: its hyperparameters by name; for a choice, the option itself.
      state: the state of the task, as host arrays; with `supervised`, a `TrainState`.
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
        """All variables of the model, for `module.apply` in Linen or `nnx.update` in NNX."""
        return self.state.variables


@dataclass(frozen=True, eq=False)
class Work:
    """What `fit` adds to a result: the states of its runs, and everything needed to train them again."""

    search: Search
    outcome: Outcome
    mesh: Mesh


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """The result of a search, finished or not: from `fit`, or without the states of its runs from `load`.

    Attributes:
      runs: (runs,) the numbers of the runs, ascending.
      hyperparameters: values by name, each of shape (runs,); for a choice, the options themselves.
      curves: metrics by name, each of shape (runs, epochs), with NaN where a run was not trained or the metric was not
        measured.
      rank_by: the name of the metric that ranks the runs.
      mode: "min" if lower is better, "max" if higher is better.
      epochs: the number of epochs of a run that is not stopped early.
      seeds: the number of runs of each configuration.
      seconds: the training time, including that of earlier processes.
      stopped: the nonzero value by which `stop` stopped the search; 0 if it was not stopped.
      finished: whether all runs have ended.
      work: the states of the runs and the arguments of `fit`; None for a loaded result.
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
        """The result of a search so far."""
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
        """The number of runs."""
        return len(self.runs)

    @functools.cached_property
    def ranking(self) -> Ranking:
        """The ranking of the runs by `rank_by`."""
        return rank(self.curves, self.rank_by, self.mode)

    def index(self, run: int) -> int:
        """The index in the arrays of the run with this number.

        Raises:
          ValueError: if there is no such run.
        """
        found = np.flatnonzero(self.runs == run)
        if not len(found):
            raise ValueError(f"run is {run!r}; it must be {self.runs[0]} to {self.runs[-1]}")
        return int(found[0])

    def curve(self, run: int) -> np.ndarray:
        """(epochs,) the metric that ranks the runs, for the run with this number, up to its last epoch.

        Raises:
          ValueError: if there is no such run.
        """
        index = self.index(run)
        return self.curves[self.rank_by][index, : self.ranking.epochs[index]]

    def last(self, name: str) -> np.ndarray:
        """(runs,) a metric after the last epoch of each run; NaN where it was not measured then."""
        return self._after(self.ranking.epochs, name)

    def _after(self, epochs: np.ndarray, name: str) -> np.ndarray:
        """(runs,) a metric after the given epoch of each run; NaN for epoch 0."""
        values = self.curves[name][np.arange(self.num_runs), np.maximum(epochs, 1) - 1]
        return np.where(epochs > 0, values, np.nan)

    @property
    def best(self) -> Trained:
        """The best run, with its state after its best epoch.

        If the search was stopped, this is the best run whose state has been kept so far.

        Raises:
          ValueError: if no run had a finite value of `rank_by`, or the result was loaded.
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
        """The run with this number, with its state after its last epoch. It requires `keep="all"` in `fit`.

        Raises:
          ValueError: if there is no such run, its state was not kept, or the result was loaded.
        """
        outcome, index = self._work().outcome, self.index(number)
        for group, rows in outcome.ended.items():
            for place in np.flatnonzero(rows == index):
                state = jax.tree.map(lambda leaf, place=place: leaf[place], outcome.states[group])
                return Trained(number, int(self.ranking.epochs[index]), self.hyperparameters_of(index), state)
        raise ValueError(f"the state of run {number} was not kept; fit keeps those of all runs with keep='all'")

    def _work(self) -> Work:
        if self.work is None:
            raise ValueError(
                "a loaded result has no states; fit returns them if it is called again with the same workdir"
            )
        return self.work

    def hyperparameters_of(self, index: int) -> dict[str, Any]:
        """The hyperparameters of the run at an index of the arrays, as Python values by name."""
        values = {name: values[index] for name, values in self.hyperparameters.items()}
        return {name: v.item() if isinstance(v, np.generic) else v for name, v in values.items()}

    def table(self, by: str = "run") -> "pandas.DataFrame":
        """Return the result as a table with a row per run, per configuration, or per value of a hyperparameter.

        The row of a run has its number, hyperparameters and rank, its metrics after its best epoch (`best_valid_loss`
        and so on) and after its last epoch (`final_valid_loss` and so on), the number of epochs that it was trained
        for, and whether it diverged. The best epoch is that of the best value of `rank_by`.

        The row of a configuration or of a value has the mean and the sample standard deviation (n - 1) of each metric
        over the runs that have it, the number of seeds or runs, and how many of them diverged. Configurations are
        ranked by the number of their diverged seeds, then by the mean of their best values of `rank_by`.

        Functions are shown by their names.

        Args:
          by: "run"; "configuration", over the seeds of each; or the name of a hyperparameter, over all runs with the
            same value.

        Returns:
          A pandas `DataFrame`.

        Raises:
          ValueError: if `by` is something else.

        Example:
          ```python
          result.table().sort_values("rank").head()
          result.table(by="optimizer")  # of a space with a hyperparameter of this name
          ```
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
        """(runs,) keys that distinguish the values of a hyperparameter; for a choice positions, which can be sorted."""
        if self.work is None:
            return self.hyperparameters[name]
        return self.work.outcome.columns.get(name, np.zeros(self.num_runs))

    def curves_table(self) -> "pandas.DataFrame":
        """Return the curves as a pandas `DataFrame`: a row per run and trained epoch, a column per metric."""
        import pandas

        trained = np.arange(len(next(iter(self.curves.values())).T)) < self.ranking.epochs[:, None]
        index, epoch = np.nonzero(trained)
        numbers = {name: curve[index, epoch] for name, curve in self.curves.items()}
        return pandas.DataFrame({"run": self.runs[index], "epoch": epoch + 1, **numbers})

    def plot(self) -> "Figure":
        """Plot the curves of all runs behind the best one's, and the best values of all runs by rank."""
        from highway_jax import plotting

        return plotting.population(self)


def _shown(value: Any) -> Any:
    """A value as a table shows it: a function by its name."""
    return getattr(value, "__name__", value) if callable(value) else value
