"""The groups of a search: runs with the same static hyperparameters, which are compiled together."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from highway_jax.population import memory
from highway_jax.population.memory import MemoryTooSmall
from highway_jax.population.programs import Group
from highway_jax.population.search import Search


class Groups(dict[str, Group]):
    """The groups of the runs that a search draws, by name; one that a sampler adds is made when asked for.

    Args:
      search: what is done.
      mesh: where the runs live.

    Attributes:
      read: the names of the hyperparameters that the task has read so far, in any group.
      sizes: how many of the drawn runs are in each.

    Raises:
      ValueError, TypeError: as `fit`, of the task and `rank_by`.
    """

    def __init__(self, search: Search, mesh: Mesh):
        super().__init__()
        self.search, self.mesh = search, mesh
        self.read: set[str] = set()
        self._noted = dataclasses.replace(search, task=search.task.noting(self.read), columns=search.drawn)
        numbers = search.space.groups(search.drawn, np.arange(search.num_runs))
        counted = zip(*np.unique(numbers, return_counts=True), strict=True)
        self.sizes = {str(number): int(size) for number, size in counted}
        for name in self.sizes:
            self[name]
        search.check_numbers(self.numbers)

    def __missing__(self, name: str) -> Group:
        static = self.search.space.static(int(name))
        with _with_hints(self.search):
            group = Group(self._noted, static, self.mesh)
        if self and set(group.numbers) != set(self.numbers):
            odd = min(set(group.numbers) ^ set(self.numbers))
            there = "only" if odd in group.numbers else "not"
            raise ValueError(f"{odd} is {there} reported where hp is {static}; all runs must report the same")
        self[name] = group
        return group

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of what is reported, the same in all groups."""
        return next(iter(self.values())).numbers

    @property
    def largest(self) -> str:
        """The name of the group whose runs take most memory."""
        return max(self, key=lambda name: memory.num_bytes(self[name].shapes))

    def runs_in_memory(self, devices: int, free: int | None) -> int:
        """How many runs fit side by side, as `memory.runs_in_memory` has it; all of them as large as the largest."""
        return memory.runs_in_memory(self[self.largest].shapes, self.search.num_runs, devices, free)

    def check_together(self, fitting: int) -> None:
        """Refuse a policy, which compares runs side by side, where memory holds some of them and nobody said how many.

        Raises:
          MemoryTooSmall: saying how many it holds.
        """
        if self.search.policy is not None and fitting < self.search.num_runs:
            raise MemoryTooSmall(
                f"runs_in_memory is None, and memory holds {fitting} of {self.search.num_runs} runs; for a policy, "
                f"which compares runs side by side, say how many, such as {fitting}"
            )


@contextlib.contextmanager
def _with_hints(search: Search) -> Iterator[None]:
    """An error in tracing is told with what may be its cause."""
    try:
        yield
    except Exception as error:
        told = hasattr(error, "__notes__")  # which function of the task it is of
        if differences := search.differences():
            error.add_note(f"The splits differ from train in an example's form: {'; '.join(differences)}.")
        if isinstance(error, jax.errors.TracerArrayConversionError) and not told:
            error.add_note(
                "The state has something made from hp that is no array, such as a TrainState's tx. Make the optimizer "
                "once, outside of init, with optax.inject_hyperparams; its rates are then arrays of the state."
            )
        raise
