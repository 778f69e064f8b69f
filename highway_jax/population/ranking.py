"""The ranking of runs by their curves."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TRAIN = "train_"  # the prefix of metrics measured in training
LOSS = "train_loss"


@dataclass(frozen=True)
class Ranking:
    """The ranking of a population; see `rank`.

    Attributes:
      best: (runs,) the best finite value of each run in the metric that ranks it; inf (or -inf, if higher is better)
        if it never had one.
      best_epoch: (runs,) the epoch of that value, counted from 1; 0 if there is none.
      final: (runs,) the value after the last epoch of each run; NaN if it was not measured then.
      diverged: (runs,) whether the run diverged, which an infinite training loss in its curve marks.
      epochs: (runs,) the number of epochs that each run was trained for.
      order: (runs,) the indices of the runs, the best first. Runs that have diverged come after all others, and those
        that never had a finite value come last.
    """

    best: np.ndarray
    best_epoch: np.ndarray
    final: np.ndarray
    diverged: np.ndarray
    epochs: np.ndarray
    order: np.ndarray

    @property
    def ranks(self) -> np.ndarray:
        """(runs,) the rank of each run, counted from 1."""
        ranks = np.empty(len(self.order), int)
        ranks[self.order] = np.arange(1, len(self.order) + 1)
        return ranks

    def mean_of_best(self, count: int = 10) -> float:
        """The mean of the best values of the best `count` runs, or of all if there are fewer (Figure 1, right)."""
        return float(self.best[self.order[:count]].mean())

    def median(self) -> float:
        """The median of the best values of all runs, including those that diverged later."""
        return float(np.median(self.best))


def mode_of(rank_by: str, mode: str | None) -> str:
    """Return "min" if lower is better and "max" if higher is better; a loss defaults to "min".

    Raises:
      ValueError: if `mode` is something else, or None for a metric that is not a loss.
    """
    if mode is None and not rank_by.endswith("_loss"):
        raise ValueError(f"mode is None, and rank_by is {rank_by!r}, which is no loss; mode must be 'min' or 'max'")
    if mode not in (None, "min", "max"):
        raise ValueError(f"mode is {mode!r}; it must be 'min' or 'max'")
    return mode or "min"


def rank(
    curves: Mapping[str, np.ndarray] | np.ndarray, rank_by: str = "train_loss", mode: str | None = None
) -> Ranking:
    """Rank runs by their best value of one metric.

    Args:
      curves: metrics by name, each of shape (runs, epochs), with NaN where a run was not trained or the metric was not
        measured. A run has diverged if its `train_loss` is infinite, or another metric that begins with `train_` if
        there is no `train_loss`. A single array is taken as `train_loss`.
      rank_by: the name of the metric.
      mode: "min" if lower is better, "max" if higher is better; optional for a loss.

    Returns:
      A `Ranking`.

    Raises:
      ValueError: if `mode` is missing for a metric that is not a loss, or if `curves` lacks `rank_by` or has no metric
        of training.

    Example:
      ```python
      ranking = population.rank(result.curves, "valid_accuracy", mode="max")
      result.runs[ranking.order[:10]]  # the numbers of the ten best runs
      ```
    """
    mode = mode_of(rank_by, mode)
    if isinstance(curves, np.ndarray):
        curves = {LOSS: curves}
    if rank_by not in curves or not any(name.startswith(TRAIN) for name in curves):
        raise ValueError(f"curves has {', '.join(curves)}; it must have {rank_by}, and numbers of training")
    values = curves[rank_by] if mode == "min" else -curves[rank_by]
    values = np.where(np.isfinite(values), values, np.inf)
    losses = {name: curve for name, curve in curves.items() if name.startswith(TRAIN)}
    trained = np.array([losses[LOSS]] if LOSS in losses else list(losses.values()))
    known = ~np.isnan(trained).all(axis=0)
    diverged: np.ndarray = np.isinf(trained).any(axis=(0, 2))
    epochs = np.where(known.any(axis=1), known.shape[1] - known[:, ::-1].argmax(axis=1), 0)
    best = values.min(axis=1, initial=np.inf)
    return Ranking(
        best=best if mode == "min" else -best,
        best_epoch=np.where(np.isfinite(best), values.argmin(axis=1) + 1, 0),
        final=curves[rank_by][np.arange(len(values)), np.maximum(epochs, 1) - 1],
        diverged=diverged,
        epochs=epochs,
        order=np.lexsort((best, diverged, np.isinf(best))),
    )
