"""The state of a search as one value, and how an epoch changes it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import struct

from highway_jax import parallel
from highway_jax.population.programs import take_run
from highway_jax.population.ranking import Ranking, rank
from highway_jax.population.run import Run
from highway_jax.population.search import Search
from highway_jax.population.space import Columns


@struct.dataclass
class Outcome:
    """The outcome of a search's runs so far, as host arrays.

    Attributes:
      columns: hyperparameters by name, each of shape (runs,); choices as positions.
      curves: metrics by name, each of shape (runs, epochs); NaN where not trained or not measured.
      best: the state of the best run after its best epoch, under the name of its group.
      best_at: (2,) the index of that run, and the epoch; -1 if there is none yet.
      states: by group, the kept states of the runs that have ended, along a leading axis.
      ended: by group, the indices of these runs.
    """

    columns: Columns
    curves: dict[str, np.ndarray]
    best: dict[str, Any]
    best_at: np.ndarray
    states: dict[str, Any]
    ended: dict[str, np.ndarray]

    def ranking(self, search: Search) -> Ranking:
        """The ranking of the runs."""
        return rank(self.curves, search.rank_by, search.mode)


@struct.dataclass
class State:
    """The state of a search: everything that is needed to continue from here.

    Attributes:
      populations: the runs that are being trained, by group.
      members: by group, (rows,) the index of the run in each row of the population; -1 for padding rows.
      outcome: the outcome of all runs so far.
    """

    populations: dict[str, Run]
    members: dict[str, np.ndarray]
    outcome: Outcome

    def with_numbers(self, group: str, epoch: int, numbers: Mapping[str, Any]) -> "State":
        """Return the state with the metrics (rows,) of a group's rows after an epoch, counted from 1."""
        members = self.members[group]
        used, found = members >= 0, host(numbers)
        curves = {
            name: put(curve, (members[used], epoch - 1), found[name][used]) if name in found else curve
            for name, curve in self.outcome.curves.items()
        }
        return dataclasses.replace(self, outcome=dataclasses.replace(self.outcome, curves=curves))

    def with_best(self, search: Search, epoch: int) -> "State":
        """Return the state with that of the best run kept, if this epoch is its best: it may get worse or diverge."""
        ranking = self.outcome.ranking(search)
        best = int(ranking.order[0])
        if ranking.best_epoch[best] != epoch and self.outcome.best_at[0] >= 0:
            return self
        for group, members in self.members.items():
            if best in members:
                state = parallel.gather(take_run(self.populations[group].state, int(np.argmax(members == best))))
                outcome = dataclasses.replace(self.outcome, best={group: state}, best_at=np.array([best, epoch]))
                return dataclasses.replace(self, outcome=outcome)
        return self

    def with_ended(self, gone: Mapping[str, np.ndarray]) -> "State":
        """Return the state with those of ending runs kept, which are given by group as rows of the population."""
        states, ended = dict(self.outcome.states), dict(self.outcome.ended)
        for group, rows in gone.items():
            if len(rows):
                now = jax.tree.map(lambda leaf, rows=rows: leaf[rows], host(self.populations[group].state))
                if group in states:
                    now = jax.tree.map(lambda *parts: np.concatenate(parts), states[group], now)
                states[group] = now
                ended[group] = np.concatenate([ended.get(group, np.empty(0, int)), self.members[group][rows]])
        return dataclasses.replace(self, outcome=dataclasses.replace(self.outcome, states=states, ended=ended))


def host(tree: Any) -> Any:
    """Copy a tree to the host."""
    return jax.tree.map(np.array, parallel.gather(tree))


def put(table: np.ndarray, where: Any, values: Any) -> np.ndarray:
    """Return a changed copy, since a checkpoint may still be writing the original."""
    table = table.copy()
    table[where] = values
    return table
