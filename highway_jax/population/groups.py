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
    """The groups of a search's runs, by name; a group that a sampler adds is created on first access.

    Args:
      search: the search.
      mesh: the devices that hold the runs.

    Attributes:
      read: the names of the hyperparameters that the task has read so far, in any group.
      sizes: the number of drawn runs in each group.

    Raises:
      ValueError: as `fit`, for the task and `rank_by`.
      TypeError: as `fit`, for the task.
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
        """The names of the reported numbers, which are the same in all groups."""
        return next(iter(self.values())).numbers

    @property
    def largest(self) -> str:
        """The name of the group whose runs need the most memory."""
        return max(self, key=lambda name: memory.num_bytes(self[name].shapes))

    def runs_in_memory(self, devices: int, free: int | None) -> int:
        """How many runs fit into memory (see `memory.runs_in_memory`) if all are as large as the largest."""
        return memory.runs_in_memory(self[self.largest].shapes, self.search.num_runs, devices, free)

    def check_together(self, fitting: int) -> None:
        """Reject a policy if memory does not hold all runs and `runs_in_memory` was not given.

        A policy compares only runs that are in memory together, so their number changes the result.

        Raises:
          MemoryTooSmall: if both hold; the message says how many runs fit.
        """
        if self.search.policy is not None and fitting < self.search.num_runs:
            raise MemoryTooSmall(
                f"runs_in_memory is None, and memory holds {fitting} of {self.search.num_runs} runs; for a policy, "
                f"which compares runs side by side, say how many, such as {fitting}"
            )


@contextlib.contextmanager
def _with_hints(search: Search) -> Iterator[None]:
    """Add notes about likely causes to an error in tracing."""
    try:
        yield
    except Exception as error:
        told = hasattr(error, "__notes__")  # which function of the task it is of
        if differences := search.differences():
            error.add_note(f"The splits differ from train in an example's form: {'; '.join(differences)}.")
        if isinstance(error, jax.errors.TracerArrayConversionError) and not told:
            error.add_note(
                "The state has something made from hp that is not an array, such as a TrainState's tx. Make the "
                "optimizer once, outside of init, with optax.inject_hyperparams; its rates are then part of the state."
            )
        raise
