"""Where a search stands, as one value, and what an epoch and what follows it make of it."""

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
    """What a search's runs have given so far: host arrays.

    Attributes:
      columns: (runs,) hyperparameters by name, choices as positions.
      curves: (runs, epochs) numbers by name, NaN where not trained or not measured.
      best: the state of the best run after its best epoch, under the name of its group.
      best_at: (2,) whose state that is, and after which epoch; -1 if there is none yet.
      states: of each group, the states of the runs that have ended, one after another; of those that are kept.
      ended: of each group, which runs those are.
    """

    columns: Columns
    curves: dict[str, np.ndarray]
    best: dict[str, Any]
    best_at: np.ndarray
    states: dict[str, Any]
    ended: dict[str, np.ndarray]

    def ranking(self, search: Search) -> Ranking:
        """How its runs are ranked."""
        return rank(self.curves, search.rank_by, search.mode)


@struct.dataclass
class State:
    """A search so far: all that going on from here needs.

    Attributes:
      populations: the runs that are trained now, by group.
      members: (rows,) which of all runs each row of a population is, by group; -1 for rows that are padding.
      outcome: what all runs have given.
    """

    populations: dict[str, Run]
    members: dict[str, np.ndarray]
    outcome: Outcome

    def with_numbers(self, group: str, epoch: int, numbers: Mapping[str, Any]) -> "State":
        """With numbers of a group's rows after an epoch (from 1), by name, (rows,) each."""
        members = self.members[group]
        used, found = members >= 0, host(numbers)
        curves = {
            name: put(curve, (members[used], epoch - 1), found[name][used]) if name in found else curve
            for name, curve in self.outcome.curves.items()
        }
        return dataclasses.replace(self, outcome=dataclasses.replace(self.outcome, curves=curves))

    def with_best(self, search: Search, epoch: int) -> "State":
        """With the best run's state, if it is at its best after this epoch: it may be worse later, or diverge."""
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
        """With the states of runs that end, given by group as rows of the population."""
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
    """Copy to the host."""
    return jax.tree.map(np.array, parallel.gather(tree))


def put(table: np.ndarray, where: Any, values: Any) -> np.ndarray:
    """A copy, since the table may be on its way into a checkpoint."""
    table = table.copy()
    table[where] = values
    return table
