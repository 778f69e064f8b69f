"""Train a population to its end, with checkpoints: a task, mapped over a space."""

import contextlib
import dataclasses
import hashlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from highway_jax import parallel
from highway_jax.files import check_path
from highway_jax.population import memory
from highway_jax.population.policies import Policy
from highway_jax.population.programs import Group, gather_batches, take_rows, take_run
from highway_jax.population.progress import Bar, Progress
from highway_jax.population.ranking import TRAIN, rank
from highway_jax.population.result import Result
from highway_jax.population.run import Run
from highway_jax.population.search import Sampler, Search, check_integer
from highway_jax.population.space import Space
from highway_jax.population.state import Outcome, State, put
from highway_jax.population.storage import Storage
from highway_jax.population.task import Task
from highway_jax.population.tracing import described


class MemoryTooSmall(ValueError):
    """Memory does not hold all runs, and a policy needs to know how many to compare."""


def fit(
    task: Task,
    space: Mapping[str, Any],
    *,
    train: Any,
    evaluate: Mapping[str, Any] | None = None,
    num_runs: int,
    epochs: int,
    batch_size: int,
    seeds: int = 1,
    seed: int = 0,
    first_run: int = 0,
    rank_by: str = "train_loss",
    mode: str | None = None,
    policy: Policy | None = None,
    sampler: Sampler | None = None,
    evaluate_every: int | None = 1,
    evaluate_batch_size: int | None = 1000,
    keep: str = "best",
    workdir: str | Path | None = None,
    identity: Mapping[str, Any] | None = None,
    checkpoint_every: int | None = None,
    progress: bool | Callable[[Progress], None] = True,
    stop: Callable[[], int] | None = None,
    mesh: Mesh | None = None,
    runs_in_memory: int | None = None,
    runs_per_batch: int | None = None,
) -> Result:
    """Train a population of runs: a task, mapped over the configurations that a space gives.

    Run i follows from the task, its configuration, its seed and the data alone: it is the same in any population, on
    any devices, and alone. All runs see the same batches in the same order.

    Args:
      task: what a run is; from `supervised`, or a `Task` of one's own.
      space: what runs differ in (`Space`).
      train: the examples to train on, any tree of arrays with one leading axis. Each epoch goes through them in
        another order; the last ones, too few for a batch, sit it out.
      evaluate: further examples by name, which the task's `evaluate` measures.
      num_runs: how many runs there are in all.
      epochs: how often each goes through the examples, unless a policy stops it.
      batch_size: examples in a step.
      seeds: runs of each configuration. With more than one, the k-th run of every configuration starts from the same
        random key, so that configurations are compared like with like; with one, every draw has a key of its own.
      seed: decides all draws, initial states and orders.
      first_run: the number of the first run.
      rank_by: the number by whose best value runs are ranked: `train_` or the name of a split, then a metric's name.
      mode: "min" if lower is better, or "max"; it may be left out for a loss. Runs that diverge are ranked after all
        others.
      policy: which runs stop early (`Halving`); None for none.
      sampler: where hyperparameters come from instead of the space's distributions; see `Sampler`.
      evaluate_every: epochs between evaluations; None for after the last epoch alone.
      evaluate_batch_size: examples evaluated at a time. Scalars are averaged over batches: for a number that is no mean
        over examples, None takes all at once.
      keep: "best" to keep the best run's state alone, "all" for every run's after its last epoch as well.
      workdir: a directory for checkpoints; called again with the same arguments, the search goes on from the last one,
        or returns at once if it is done. None for none.
      identity: what decides the result, JSON-able, by name. By default all arguments, the data's MD5 and a digest of
        the traced task (of a sampler, whether there is one); work in a workdir goes on only with the same.
      checkpoint_every: epochs (of the runs side by side) between checkpoints; None for as often as costs one percent of
        the time, and the first after ten seconds at the earliest.
      progress: whether to show a bar (outside of terminals and notebooks, a line now and then), or a function that is
        called at the start and after every epoch.
      stop: called after every epoch; where it returns another number than 0 the search stops, with a checkpoint. By
        default, Ctrl-C stops a search with a workdir this way, and then raises KeyboardInterrupt.
      mesh: devices, from `parallel.runs_mesh`; by default all. JAX sees a CPU as one device, unless
        `parallel.split_cpu()` is called before it is used; runs split over one device per core train faster.
      runs_in_memory: runs trained side by side, the others after them; by default as many as memory holds.
      runs_per_batch: runs that a device trains in lockstep; by default one on a CPU, as many as fit on an accelerator.

    Returns:
      A `Result`; all that came out.

    Raises:
      ValueError, TypeError: naming the argument, before anything is trained.
      WorkdirError: if the workdir holds another search.
      KeyboardInterrupt: after Ctrl-C, once the checkpoint is there.
      parallel.ProcessLost: if another process of several has ended.
    """
    if mode is None:
        if not str(rank_by).endswith("_loss"):
            raise ValueError(f"mode is None, and rank_by is {rank_by!r}, which is no loss; mode must be 'min' or 'max'")
        mode = "min"
    search = Search(
        task=task, space=Space(space), train=train, evaluate=dict(evaluate or {}), num_runs=num_runs, epochs=epochs,
        batch_size=batch_size, seeds=seeds, seed=seed, first_run=first_run, rank_by=rank_by, mode=mode, policy=policy,
        sampler=sampler, evaluate_every=evaluate_every, evaluate_batch_size=evaluate_batch_size, keep=keep,
    )  # fmt: skip
    if num_runs % seeds:
        raise ValueError(f"num_runs is {num_runs}; it must be a multiple of seeds, {seeds}")
    if num_runs % (seeds * search.space.points):
        raise ValueError(
            f"num_runs is {num_runs}; it must be a multiple of {seeds * search.space.points}: the space's grids have "
            f"{search.space.points} points" + (f", with {seeds} seeds each" if seeds > 1 else "")
        )
    return _fit(
        search, workdir, identity, checkpoint_every, progress, stop, mesh, runs_in_memory, runs_per_batch
    )  # fmt: skip


def _fit(
    search: Search,
    workdir: str | Path | None = None,
    identity: Mapping[str, Any] | None = None,
    checkpoint_every: int | None = None,
    progress: bool | Callable[[Progress], None] = True,
    stop: Callable[[], int] | None = None,
    mesh: Mesh | None = None,
    runs_in_memory: int | None = None,
    runs_per_batch: int | None = None,
) -> Result:
    options = {"checkpoint_every": checkpoint_every, "runs_in_memory": runs_in_memory, "runs_per_batch": runs_per_batch}
    for name, value in options.items():
        if value is not None:
            check_integer(name, value, 1)
    mesh = parallel.choose_mesh(search.num_runs, search.batch_size) if mesh is None else mesh
    trainer = Trainer(search, mesh, runs_in_memory, runs_per_batch)
    if search.columns is None and (strange := search.not_finite()):
        told = ", ".join(f"{count} in {name}" for name, count in strange.items())
        warnings.warn(f"the data have numbers that are NaN or infinite: {told}", stacklevel=3)
    unread = [name for name in search.space.names if name not in trainer.read]
    if unread and search.sampler is None and search.columns is None:  # not where further groups may come, or were
        warnings.warn(f"space has {', '.join(map(repr, unread))}, which the task never reads", stacklevel=3)
    with contextlib.ExitStack() as stack:
        storage = None
        if workdir is not None:
            check_path(workdir)
            storage = Storage(Path(workdir), identity or trainer.identity(), checkpoint_every)
            stack.callback(storage.close)
        show = stack.enter_context(Bar()) if progress is True else progress or (lambda progress: None)
        asked = stack.enter_context(_interrupts(storage is not None)) if stop is None else stop
        result = _train(trainer, storage, show, asked)
    if stop is None and result.stopped:
        raise KeyboardInterrupt
    return result


def _train(
    trainer: "Trainer", storage: Storage | None, show: Callable[[Progress], None], asked: Callable[[], int]
) -> Result:
    """Train from the last checkpoint, or from the beginning, to the end, or until it is asked to stop."""
    search = trainer.search
    step, notes = storage.newest() if storage else (0, {})
    if storage and step:
        state = trainer.restored(storage, step, notes)
    else:
        state = trainer.begin(trainer.blank(), part=0)
    plan = search.plan(trainer.runs_in_memory)
    seconds, stopped, started = notes.get("seconds", 0.0), 0, time.monotonic()

    def so_far() -> Result:
        return Result(
            search, state.outcome, seconds + time.monotonic() - started, stopped, step == len(plan), trainer.mesh
        )

    show(Progress(step, plan, so_far()))
    while step < len(plan) and not stopped:
        part, epoch, _ = plan[step]
        state, step = trainer.train(state, epoch), step + 1
        due = storage is not None and storage.due(step, state)
        said = parallel.agree(asked() or 0, due)  # the first message after an epoch: it tells who is lost
        stopped, due = int(said[:, 0].max()), bool(said[0, 1])
        if search.evaluates(epoch):
            state = trainer.evaluate(state, epoch)
        state = state.with_best(search, epoch)
        if search.stops_runs(epoch) or epoch == search.epochs:
            state = trainer.without_ended(state, epoch)
        if step == len(plan):
            state = trainer.with_best_again(state)
        elif epoch == search.epochs:
            state = trainer.begin(state.outcome, part + 1)
        result = so_far()
        show(Progress(step, plan, result))
        if storage and (due or stopped or step == len(plan)):
            storage.save(step, state, {"seconds": result.seconds, **trainer.notes(state)})
    if storage:
        storage.wait()
    if stopped and search.keep == "all":
        state = state.with_ended({group: np.flatnonzero(members >= 0) for group, members in state.members.items()})
    return so_far()


class Trainer:
    """Makes one state of another; holds what is compiled.

    Args:
      search: what is done.
      mesh: where.
      runs_in_memory, runs_per_batch: as for `fit`.

    Attributes:
      read: the names of the hyperparameters that the task has read so far, in any group.

    Raises:
      ValueError, TypeError: as `fit`, of the task and `rank_by`.
    """

    def __init__(self, search: Search, mesh: Mesh, runs_in_memory: int | None, runs_per_batch: int | None):
        self.search, self.mesh = search, mesh
        self.read: set[str] = set()
        self._noted = dataclasses.replace(search, task=search.task.noting(self.read), columns=search.drawn)
        self._groups: dict[str, Group] = {}
        self._lockstep: dict[str, int] = {}
        self._wanted_lockstep = runs_per_batch
        self._data: dict[str, Any] = {}
        for number in np.unique(search.space.groups(search.drawn, np.arange(search.num_runs))):
            self._group(str(number))
        self._numbers = next(iter(self._groups.values())).numbers
        if search.rank_by not in self._numbers:
            raise ValueError(f"rank_by is {search.rank_by!r}; it must be one of {', '.join(self._numbers)}")
        if search.policy is not None and search.evaluate_every is None and not search.rank_by.startswith(TRAIN):
            raise ValueError(f"evaluate_every is None; policy needs {search.rank_by} before the last epoch")
        self.runs_in_memory = runs_in_memory or self._choose_runs_in_memory()

    def _group(self, name: str) -> Group:
        if name not in self._groups:
            with _with_hints(self.search):
                self._groups[name] = Group(self._noted, self.search.space.static(int(name)), self.mesh)
        return self._groups[name]

    def _choose_runs_in_memory(self) -> int:
        search = self.search
        largest = max((group.shapes for group in self._groups.values()), key=memory.num_bytes)
        devices, free = self.mesh.shape[parallel.RUNS], parallel.free_memory(self.mesh)
        fitting = int(parallel.agree(memory.runs_in_memory(largest, search.num_runs, devices, free)).min())
        if search.policy is not None and fitting < search.num_runs:
            raise MemoryTooSmall(
                f"runs_in_memory is None, and memory holds {fitting} of {search.num_runs} runs; for a policy, which "
                f"compares runs side by side, say how many, such as {fitting}"
            )
        return fitting

    def blank(self) -> Outcome:
        """The outcome of runs that have not begun."""
        curve = np.full((self.search.num_runs, self.search.epochs), np.nan, np.float32)
        return Outcome(self.search.drawn, dict.fromkeys(self._numbers, curve), {}, np.full(2, -1), {}, {})

    def begin(self, outcome: Outcome, part: int) -> State:
        """Start the runs of a part."""
        search = self.search
        rows = np.sort(search.part(part, self.runs_in_memory))
        if search.sampler is not None:
            before = Result(search, outcome, 0.0, 0, False, self.mesh)
            chosen = search.space.positions(search.sampler(search.runs[rows], before))
            new = {name: put(outcome.columns[name], rows, values) for name, values in chosen.items()}
            outcome = dataclasses.replace(outcome, columns={**outcome.columns, **new})
        numbers = search.space.groups(outcome.columns, rows)
        members = {}
        for number in np.unique(numbers):
            own = rows[numbers == number]
            members[str(number)] = self._placed(own, parallel.padded(len(own), self.mesh))
        populations = {name: self._group(name).start(outcome.columns, own) for name, own in members.items()}
        return State(populations, members, outcome)

    def train(self, state: State, epoch: int) -> State:
        """An epoch (from 1) of the runs that are trained now."""
        batches = self._epoch_batches(epoch)
        populations, numbers = {}, {}
        for name, population in state.populations.items():
            if name not in self._lockstep:
                chosen = self._wanted_lockstep or self._group(name).runs_per_batch(population)
                self._lockstep[name] = int(parallel.agree(chosen).min())
            populations[name], numbers[name] = self._group(name).train(
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
        """With the numbers of the runs that are trained now on the splits."""
        for split, examples in self.search.evaluate.items():
            there = self._on_devices(split, examples)
            for name, population in state.populations.items():
                found = self._group(name).evaluate(population, there, self._lockstep[name], state.members[name])
                named = {f"{split}_{metric}": values for metric, values in found.items()}
                state = state.with_numbers(name, epoch, named)
        return state

    def without_ended(self, state: State, epoch: int) -> State:
        """Without the runs that end after this epoch, whose states are kept if they are a result."""
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
                # What is compiled serves as long as what stays fills a batch of lockstep.
                fills = self._lockstep[name] <= fewest // self.mesh.shape[parallel.RUNS]
                rows = len(stays) if fills else fewest
                before = state.populations[name], state.members[name]
                populations[name], members[name] = self._moved(*before, np.flatnonzero(stays), rows)
        return State(populations, members, state.outcome)

    def _placed(self, runs: np.ndarray, rows: int) -> np.ndarray:
        """The members of a population of so many rows that has these runs."""
        members = np.full(rows, -1)
        members[parallel.spread(len(runs), rows, self.mesh)] = runs
        return members

    def _moved(self, population: Run, members: np.ndarray, kept: np.ndarray, rows: int) -> tuple[Run, np.ndarray]:
        """Some rows of a population, and the members there, as a population of so many rows."""
        new = self._placed(members[kept], rows)
        if not np.array_equal(new, members):
            population = take_rows(self.mesh, population, np.maximum(self._placed(kept, rows), 0))
        return population, new

    def with_best_again(self, state: State) -> State:
        """With the best run's state where another's is there, which led and then diverged: the run is trained again."""
        outcome = state.outcome
        ranking = outcome.ranking(self.search)
        best = ranking.order[:1]
        at = np.array([best[0], ranking.best_epoch[best[0]]])
        if at[1] == 0 or (outcome.best_at == at).all():
            return state
        name = str(self.search.space.groups(outcome.columns, best)[0])
        group, members = self._group(name), self._placed(best, parallel.padded(1, self.mesh))
        population = group.start(outcome.columns, members)
        for epoch in range(1, at[1] + 1):
            population, _ = group.train(population, self._epoch_batches(epoch), 1, members)
        again = {name: parallel.gather(take_run(population.state, 0))}
        return dataclasses.replace(state, outcome=dataclasses.replace(outcome, best=again, best_at=at))

    def notes(self, state: State) -> dict[str, Any]:
        """What must be known to go on from a state, and to read it back: JSON-able."""
        return {
            "runs_in_memory": self.runs_in_memory,
            "runs_per_batch": self._lockstep,
            "members": {name: len(rows) for name, rows in state.members.items()},
            "ended": {name: len(rows) for name, rows in state.outcome.ended.items()},
            "best": list(state.outcome.best),
        }

    def restored(self, storage: Storage, step: int, notes: Mapping[str, Any]) -> State:
        """The state of a checkpoint; from here on as many runs at once as before, which can decide the rounding."""
        self.runs_in_memory = notes["runs_in_memory"]
        if self._wanted_lockstep is None:
            self._lockstep = dict(notes["runs_per_batch"])
        over_runs = parallel.over_runs(self.mesh)

        def on_devices(name: str, rows: int) -> Any:
            count = parallel.padded(rows, self.mesh)
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=over_runs),
                self._group(name).shapes,
            )

        def on_host(name: str, *rows: int) -> Any:
            state = self._group(name).shapes.state
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
        for name, there in list(state.members.items()):  # maybe spread over other devices
            there = np.pad(there, (0, parallel.padded(len(there), self.mesh) - len(there)), constant_values=-1)
            moved = self._moved(state.populations[name], there, np.flatnonzero(there >= 0), len(there))
            state.populations[name], state.members[name] = moved
        # Dicts come back in another order, which is that of the table's columns.
        columns = {name: state.outcome.columns[name] for name in outcome.columns}
        curves = {name: state.outcome.curves[name] for name in outcome.curves}
        return dataclasses.replace(state, outcome=dataclasses.replace(state.outcome, columns=columns, curves=curves))

    def identity(self) -> dict[str, Any]:
        """What decides the search's numbers, by name, JSON-able."""
        search = self.search
        plain = (
            *("num_runs", "epochs", "batch_size", "seeds", "seed", "first_run", "rank_by", "mode"),
            *("evaluate_every", "evaluate_batch_size", "keep"),
        )
        return {
            **{name: getattr(search, name) for name in plain},
            "policy": repr(search.policy),
            "sampler": search.sampler is not None,
            "space": _md5((search.drawn, search.space.traced(search.drawn), search.own_seeds)),
            "options": search.space.described(),
            "data": {name: _md5(split) for name, split in {"train": search.train, **search.evaluate}.items()},
            "task": [digest for group in self._groups.values() for digest in group.traced.digest()],
        }


def replay(result: Result, run: int, epochs: int | None = None, **options: Any) -> Result:
    """Train one run of a population again, alone: the same run, or longer.

    Args:
      result: where the run is from.
      run: its number.
      epochs: how many; by default as many as the population's runs. No policy stops it.
      options: further arguments of `fit`, such as `workdir`. The `mesh` is the population's by default.

    Returns:
      The run's own `Result`. Its curve begins as the population's: to the last bit on a CPU with the population's mesh,
      otherwise to rounding.

    Raises:
      ValueError: for a run that the population does not have.
    """
    search = result.search
    if run not in search.runs:
        raise ValueError(f"run is {run}; it must be {search.runs[0]} to {search.runs[-1]}")
    own = {name: values[[run - search.first_run]] for name, values in result.outcome.columns.items()}
    alone = dataclasses.replace(
        search, num_runs=1, first_run=run, epochs=epochs or search.epochs, policy=None, sampler=None, columns=own
    )
    return _fit(alone, **{"mesh": result.mesh, **options})


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


def _md5(tree: Any) -> str:
    """Of a tree's arrays: their places, dtypes, shapes and contents."""
    digest = hashlib.md5(usedforsecurity=False)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{jax.tree_util.keystr(path)} {described(leaf)}".encode())
    return digest.hexdigest()


def _wait(tree: Any) -> None:
    """Wait for a computation with an ear for signals, which Python cannot hear inside JAX."""
    for array in jax.tree.leaves(tree):
        while not array.is_ready():
            time.sleep(0.002)


@contextlib.contextmanager
def _interrupts(wanted: bool) -> Iterator[Callable[[], int]]:
    """Yields whether Ctrl-C was pressed; pressed again, it interrupts at once."""
    pressed: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not wanted or not main or usual is not signal.default_int_handler:
        yield lambda: 0
        return

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: sum(pressed)
    finally:
        signal.signal(signal.SIGINT, usual)
