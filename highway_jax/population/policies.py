"""Policies, which stop runs early."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from highway_jax.population.arguments import set_integer
from highway_jax.population.ranking import Ranking
from highway_jax.population.space import is_number


@runtime_checkable
class Policy(Protocol):
    """Decides between epochs which of the runs in memory continue.

    A search can only be resumed with a policy of the same `repr`, so the `repr` must show everything that matters.
    """

    def due(self, epoch: int) -> bool:
        """Whether runs stop after this epoch, counted from 1."""

    def num_kept(self, num_runs: int) -> int:
        """How many of `num_runs` runs continue."""

    def kept(self, ranking: Ranking) -> np.ndarray:
        """The indices of the runs that continue: `num_kept` of them, ascending."""


@dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson and Talwalkar, arXiv:1502.07943): the worst runs stop every few epochs.

    Attributes:
      every: the number of epochs between stops.
      keep: the fraction of the runs that continues each time, between 0 and 1; their number is rounded up.
      at_least: the smallest number of runs that continues, such as 10 for the mean of the best ten.

    Raises:
      ValueError: if a number is out of range, or `every` or `at_least` is not an integer.

    Example:
      Of 64 runs, 32 continue after epoch 10, 16 after epoch 20, and so on:

      ```python
      population.fit(task, space, num_runs=64, epochs=60, policy=population.Halving(every=10), ...)
      ```
    """

    every: int
    keep: float = 0.5
    at_least: int = 1

    def __post_init__(self) -> None:
        for name in "every", "at_least":
            set_integer(self, name, 1)
        if not is_number(self.keep) or not 0 < self.keep < 1:
            raise ValueError(f"keep is {self.keep!r}; it must be between 0 and 1")

    def due(self, epoch: int) -> bool:
        """Whether runs stop after this epoch, counted from 1."""
        return epoch % self.every == 0

    def num_kept(self, num_runs: int) -> int:
        """How many of `num_runs` runs continue."""
        kept = math.ceil(round(self.keep * num_runs, 6))  # in floating point, 0.1 * 30 exceeds 3
        return max(kept, min(self.at_least, num_runs))

    def kept(self, ranking: Ranking) -> np.ndarray:
        """The indices of the runs that continue, ascending."""
        return np.sort(ranking.order[: self.num_kept(len(ranking.order))])
