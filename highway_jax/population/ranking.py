"""Rank runs by their curves."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TRAIN = "train_"  # what the names of numbers measured in training begin with
LOSS = "train_loss"


@dataclass(frozen=True)
class Ranking:
    """A population's outcome, from its curves; see `rank`.

    Attributes:
      best: (runs,) the best finite value of each run's ranked number; inf (or -inf) if it never had one.
      best_epoch: (runs,) the epoch of that value, from 1; 0 if there is none.
      final: (runs,) the value after its last epoch, NaN where it was not measured then.
      diverged: (runs,) whether a number of its training stopped being finite.
      epochs: (runs,) how many it was trained for.
      order: (runs,) run indices, the best first. Runs that have diverged come after all others, and those that never
        had a finite value come last.
    """

    best: np.ndarray
    best_epoch: np.ndarray
    final: np.ndarray
    diverged: np.ndarray
    epochs: np.ndarray
    order: np.ndarray

    @property
    def ranks(self) -> np.ndarray:
        """(runs,) every run's rank, from 1."""
        ranks = np.empty(len(self.order), int)
        ranks[self.order] = np.arange(1, len(self.order) + 1)
        return ranks

    def mean_of_best(self, count: int = 10) -> float:
        """Mean best value of the best `count` runs, of all if there are fewer (Figure 1, right)."""
        return float(self.best[self.order[:count]].mean())

    def median(self) -> float:
        """Median best value of all runs, diverged ones included with the best they had."""
        return float(np.median(self.best))


def mode_of(rank_by: str, mode: str | None) -> str:
    """Whether lower is better, "min", or "max".

    Raises:
      ValueError: for another mode, and for none where it must be said.
    """
    if mode is None and not rank_by.endswith("_loss"):
        raise ValueError(f"mode is None, and rank_by is {rank_by!r}, which is no loss; mode must be 'min' or 'max'")
    if mode not in (None, "min", "max"):
        raise ValueError(f"mode is {mode!r}; it must be 'min' or 'max'")
    return mode or "min"


def rank(
    curves: Mapping[str, np.ndarray] | np.ndarray, rank_by: str = "train_loss", mode: str | None = None
) -> Ranking:
    """Rank runs by the best value of one number.

    Args:
      curves: numbers by name, (runs, epochs) each; NaN where a run was not trained, or the number not measured. Those
        whose names begin with `train_` tell of runs that have diverged: `train_loss` is infinite then, or all of them
        where there is no loss. An array alone is `train_loss`.
      rank_by: the number that counts.
      mode: "min" if lower is better, or "max"; it may be left out for a loss.

    Raises:
      ValueError: if `mode` must be said, or there are no such numbers.
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
