"""Policies: which runs go on."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from highway_jax.population.arguments import set_integer
from highway_jax.population.ranking import Ranking
from highway_jax.population.space import is_number


@runtime_checkable
class Policy(Protocol):
    """Decides between epochs which of the runs that are trained side by side go on.

    Its `repr` says what it does: a checkpoint goes on under one of the same `repr` alone.
    """

    def due(self, epoch: int) -> bool:
        """Whether runs stop after this epoch (from 1)."""

    def num_kept(self, num_runs: int) -> int:
        """How many of so many runs go on."""

    def kept(self, ranking: Ranking) -> np.ndarray:
        """Indices of the runs that go on, `num_kept` of them, ascending."""


@dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson and Talwalkar, arXiv:1502.07943): the worst runs stop, early and often.

    Attributes:
      every: epochs after which a share of the runs stops, again and again.
      keep: the share of the runs that goes on, rounded up.
      at_least: how many go on in any case, such as ten for the mean of the best ten.

    Raises:
      ValueError: for a number that is out of range, or not whole where it must be.
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
        return epoch % self.every == 0

    def num_kept(self, num_runs: int) -> int:
        kept = math.ceil(round(self.keep * num_runs, 6))  # 0.1 * 30 is above 3
        return max(kept, min(self.at_least, num_runs))

    def kept(self, ranking: Ranking) -> np.ndarray:
        return np.sort(ranking.order[: self.num_kept(len(ranking.order))])
