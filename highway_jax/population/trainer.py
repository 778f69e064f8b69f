"""The transitions between states of a search, and the compiled programs that they use."""

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from highway_jax import parallel
from highway_jax.checkpoint import check_names
from highway_jax.population import memory
from highway_jax.population.groups import Groups
from highway_jax.population.memory import MemoryTooSmall, RunTooLarge
from highway_jax.population.programs import gather_batches, take_rows, take_run
from highway_jax.population.ranking import TRAIN, rank
from highway_jax.population.result import Result, Work
from highway_jax.population.run import Run
from highway_jax.population.search import Search
from highway_jax.population.state import Outcome, State, put
from highway_jax.population.storage import Storage
from highway_jax.population.tracing import described


class Trainer:
    """Advances the state of a search; each method returns a new state.

    Args:
      search: the search.
      mesh: the devices that hold the runs.
      runs_in_memory: as for `fit`.
      runs_per_batch: as for `fit`.

    Attributes:
      groups: the groups of runs, with their compiled programs.
      runs_in_memory: the number of runs that are trained side by side.

    Raises:
      ValueError: as `fit`, for the task and `rank_by`.
      TypeError: as `fit`, for the task.
      MemoryTooSmall: if memory does not hold the runs.
    """

    def __init__(self, search: Search, mesh: Mesh, runs_in_memory: int | None, runs_per_batch: int | None):
        self.search, self.mesh = search, mesh
        self.groups = Groups(search, mesh)
        self._lockstep: dict[str, int] = {}
        self._wanted_lockstep = runs_per_batch
        self._data: dict[str, Any] = {}
        self.runs_in_memory = runs_in_memory or self._choose_runs_in_memory()
        self._check_memory()

    def check_storable(self) -> None:
        """Reject a task whose state could not be restored from a checkpoint.

        Raises:
          ValueError: if it could not; the message says what is wrong with the state.
        """
        for group in self.groups.values():
            check_names(group.shapes)

    def _check_memory(self) -> None:
        """Reject runs that memory cannot hold together, before any of it is allocated.

        Raises:
          MemoryTooSmall: if memory cannot hold them; the message says how much they need.
        """
        group, free = self.groups[self.groups.largest], parallel.free_memory(self.mesh)
        state, runs = memory.num_bytes(group.shapes), min(self.runs_in_memory, self.search.num_runs)
        rows, working, devices = parallel.padded(runs, self.mesh) // self.mesh.shape[parallel.RUNS], 0, 1
        if free is None:  # the devices share this machine's memory
            free, devices = parallel.host_memory(), len(self.mesh.local_devices)
            # Only the compiler knows the memory for working, which matters if a run fills a good part of the memory.
            if state <= free < 20 * state * devices:
                working = group.memory_of_a_run(self.mesh.local_devices[0]).working
        if state + working > free:
            raise RunTooLarge(state + working, free)
        if (needed := devices * (rows * state + working)) > free:
            raise MemoryTooSmall(
                f"runs_in_memory is {self.runs_in_memory}; that many runs take {needed / 2**30:,.1f} GiB of memory, "
                f"and there are {free / 2**30:,.1f}"
            )

    def _choose_runs_in_memory(self) -> int:
        devices, free = self.mesh.shape[parallel.RUNS], parallel.free_memory(self.mesh)
        fitting = int(parallel.agree(self.groups.runs_in_memory(devices, free)).min())
        self.groups.check_together(fitting)
        return fitting

    def blank(self) -> Outcome:
        """The outcome before any run has started."""
        curve = np.full((self.search.num_runs, self.search.epochs), np.nan, np.float32)
        return Outcome(self.search.drawn, dict.fromkeys(self.groups.numbers, curve), {}, np.full(2, -1), {}, {})

    def begin(self, outcome: Outcome, part: int) -> State:
        """Start the runs of a part."""
        search = self.search
        rows = np.sort(search.part(part, self.runs_in_memory))
        if search.sampler is not None:
            before = Result.of(Work(search, outcome, self.mesh), 0.0, 0, False)
            chosen = search.space.positions(search.sampler(search.runs[rows], before))
            new = {name: put(outcome.columns[name], rows, values) for name, values in chosen.items()}
            outcome = dataclasses.replace(outcome, columns={**outcome.columns, **new})
        numbers = search.space.groups(outcome.columns, rows)
        members = {}
        for number in np.unique(numbers):
            own = rows[numbers == number]
            members[str(number)] = self._placed(own, parallel.padded(len(own), self.mesh))
        populations = {name: self.groups[name].start(outcome.columns, own) for name, own in members.items()}
        return State(populations, members, outcome)

    def train(self, state: State, epoch: int) -> State:
        """Train the current runs for an epoch, counted from 1."""
        batches = self._epoch_batches(epoch)
        populations, numbers = {}, {}
        for name, population in state.populations.items():
            if name not in self._lockstep:
                here, free = len(state.members[name]) // self.mesh.shape[parallel.RUNS], parallel.free_memory(self.mesh)
                chosen = self._wanted_lockstep or self.groups[name].runs_per_batch(here, free)
                self._lockstep[name] = int(parallel.agree(chosen).min())
            populations[name], numbers[name] = self.groups[name].train(
                population, batches, self._lockstep[name], state.members[name]
            )
        _wait(numbers)
        state = dataclasses.replace(state, populations=populations)
        for name, found in numbers.items():
            state = state.with_numbers(name, epoch, {TRAIN + metric: values for metric, values in found.items()})
        return state

    def _epoch_batches(self, epoch: int) -> Any:
        train = self._on_devices("train", self.search.train)
        return gather_batches(self.mesh, self.search.batch_size, train, self.search.epoch_key(epoch - 1))

    def _on_devices(self, name: str, split: Any) -> Any:
        if name not in self._data:
            self._data[name] = parallel.replicate(self.mesh, split)
        return self._data[name]

    def evaluate(self, state: State, epoch: int) -> State:
        """Evaluate the current runs on all splits."""
        for split, examples in self.search.evaluate.items():
            there = self._on_devices(split, examples)
            for name, population in state.populations.items():
                found = self.groups[name].evaluate(population, there, self._lockstep[name], state.members[name])
                named = {f"{split}_{metric}": values for metric, values in found.items()}
                state = state.with_numbers(name, epoch, named)
        return state

    def without_ended(self, state: State, epoch: int) -> State:
        """Remove the runs that end after this epoch, keeping their states with `keep="all"`."""
        search = self.search
        runs = np.sort(np.concatenate([members[members >= 0] for members in state.members.values()]))
        stay = runs[:0]
        if search.policy is not None and epoch < search.epochs:
            curves = {name: curve[runs] for name, curve in state.outcome.curves.items()}
            stay = runs[search.policy.kept(rank(curves, search.rank_by, search.mode))]
        staying = {name: np.isin(members, stay) for name, members in state.members.items()}
        if search.keep == "all":
            gone = {name: np.flatnonzero((state.members[name] >= 0) & ~stays) for name, stays in staying.items()}
            state = state.with_ended(gone)
        populations, members = {}, {}
        for name, stays in staying.items():
            if fewest := parallel.padded(stays.sum(), self.mesh):
                # The population keeps its size, and its compiled program, while the runs fill a batch of lockstep.
                fills = self._lockstep[name] <= fewest // self.mesh.shape[parallel.RUNS]
                rows = len(stays) if fills else fewest
                before = state.populations[name], state.members[name]
                populations[name], members[name] = self._moved(*before, np.flatnonzero(stays), rows)
        return State(populations, members, state.outcome)

    def _placed(self, runs: np.ndarray, rows: int) -> np.ndarray:
        """Assign runs to the rows of a population; -1 for padding."""
        members = np.full(rows, -1)
        members[parallel.spread(len(runs), rows, self.mesh)] = runs
        return members

    def _moved(self, population: Run, members: np.ndarray, kept: np.ndarray, rows: int) -> tuple[Run, np.ndarray]:
        """Move the kept rows of a population and their members to a population of `rows` rows."""
        new = self._placed(members[kept], rows)
        if not np.array_equal(new, members):
            population = take_rows(self.mesh, population, np.maximum(self._placed(kept, rows), 0))
        return population, new

    def with_best_again(self, state: State) -> State:
        """Train the best run again if its best state was not kept because a run that diverged later was leading."""
        outcome = state.outcome
        ranking = outcome.ranking(self.search)
        best = ranking.order[:1]
        at = np.array([best[0], ranking.best_epoch[best[0]]])
        if at[1] == 0 or (outcome.best_at == at).all():
            return state
        name = str(self.search.space.groups(outcome.columns, best)[0])
        group, members = self.groups[name], self._placed(best, parallel.padded(1, self.mesh))
        population = group.start(outcome.columns, members)
        for epoch in range(1, at[1] + 1):
            population, _ = group.train(population, self._epoch_batches(epoch), 1, members)
        again = {name: parallel.gather(take_run(population.state, 0))}
        return dataclasses.replace(state, outcome=dataclasses.replace(outcome, best=again, best_at=at))

    def notes(self, state: State) -> dict[str, Any]:
        """What is needed to restore a state and continue from it, in values that JSON can hold."""
        return {
            "runs_in_memory": self.runs_in_memory,
            "runs_per_batch": self._lockstep,
            "members": {name: len(rows) for name, rows in state.members.items()},
            "ended": {name: len(rows) for name, rows in state.outcome.ended.items()},
            "best": list(state.outcome.best),
        }

    def restored(self, storage: Storage, step: int, notes: Mapping[str, Any]) -> State:
        """Restore the state of a checkpoint.

        The numbers of runs in memory and in lockstep are restored too, since rounding can depend on them.
        """
        self.runs_in_memory = notes["runs_in_memory"]
        if self._wanted_lockstep is None:
            self._lockstep = dict(notes["runs_per_batch"])
        over_runs = parallel.over_runs(self.mesh)

        def on_devices(name: str, rows: int) -> Any:
            count = parallel.padded(rows, self.mesh)
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=over_runs),
                self.groups[name].shapes,
            )

        def on_host(name: str, *rows: int) -> Any:
            state = self.groups[name].shapes.state
            return jax.tree.map(lambda leaf: np.zeros((*rows, *leaf.shape), leaf.dtype), state)

        members, ended = notes["members"], notes["ended"]
        outcome = dataclasses.replace(
            self.blank(),
            best={name: on_host(name) for name in notes["best"]},
            states={name: on_host(name, rows) for name, rows in ended.items()},
            ended={name: np.zeros(rows, int) for name, rows in ended.items()},
        )
        populations = {name: on_devices(name, rows) for name, rows in members.items()}
        like = State(populations, {name: np.zeros(rows, int) for name, rows in members.items()}, outcome)
        state = storage.restore(step, like, min(members.values(), default=0))
        for name, there in list(state.members.items()):  # the number of devices may differ
            there = np.pad(there, (0, parallel.padded(len(there), self.mesh) - len(there)), constant_values=-1)
            moved = self._moved(state.populations[name], there, np.flatnonzero(there >= 0), len(there))
            state.populations[name], state.members[name] = moved
        # Orbax does not keep the order of dicts, which is the order of a table's columns.
        columns = {name: state.outcome.columns[name] for name in outcome.columns}
        curves = {name: state.outcome.curves[name] for name in outcome.curves}
        return dataclasses.replace(state, outcome=dataclasses.replace(state.outcome, columns=columns, curves=curves))

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of the search, by name, in values that JSON can hold."""
        search, traced = self.search, self.search.space.traced(self.search.drawn)
        plain = (
            *("num_runs", "epochs", "batch_size", "seeds", "seed", "first_run", "rank_by", "mode"),
            *("evaluate_every", "evaluate_batch_size", "keep"),
        )
        return {
            **{name: getattr(search, name) for name in plain},
            "policy": described(search.policy),
            "sampler": search.sampler is not None,
            "space": {name: _md5((values, traced.get(name))) for name, values in search.drawn.items()},
            "grid_points": search.space.points,
            "options": search.space.described(),
            "data": {name: _md5(split) for name, split in {"train": search.train, **search.evaluate}.items()},
            "task": [digest for group in self.groups.values() for digest in group.traced.digest()],
        }


def _md5(tree: Any) -> str:
    """The MD5 of the paths, dtypes, shapes and contents of a tree's arrays."""
    digest = hashlib.md5(usedforsecurity=False)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{jax.tree_util.keystr(path)} {described(leaf)}".encode())
    return digest.hexdigest()


def _wait(tree: Any) -> None:
    """Wait for a computation by polling, since Python cannot handle signals while it blocks in JAX."""
    for array in jax.tree.leaves(tree):
        while not array.is_ready():
            time.sleep(0.002)
