"""Train a population to its end, with checkpoints: a task, mapped over a space."""

import contextlib
import dataclasses
import numbers
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from highway_jax import parallel
from highway_jax.population.arguments import check_is
from highway_jax.population.execution import Execution
from highway_jax.population.policies import Policy
from highway_jax.population.progress import Bar, Progress
from highway_jax.population.result import Result, Work
from highway_jax.population.search import Sampler, Search
from highway_jax.population.space import Space
from highway_jax.population.storage import Storage
from highway_jax.population.task import Task
from highway_jax.population.trainer import Trainer


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
    tables: bool = True,
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
      sampler: where hyperparameters come from instead of the space's distributions: `tpe()`, which learns from the runs
        before, or a function of one's own (`Sampler`).
      evaluate_every: epochs between evaluations; None for after the last epoch alone.
      evaluate_batch_size: examples evaluated at a time. Scalars are averaged over batches: for a number that is no mean
        over examples, None takes all at once.
      keep: "best" to keep the best run's state alone, "all" for every run's after its last epoch as well.
      workdir: a directory for checkpoints; called again with the same arguments, the search goes on from the last one,
        or returns at once if it is done. With every checkpoint its tables are written, which `load`
        reads: `runs.csv`, `curves.csv` and, of what they are, `search.json`. None for none.
      identity: what decides the result, JSON-able, by name. By default all arguments, the data's MD5 and a digest of
        the traced task (of a sampler, whether there is one); work in a workdir goes on only with the same.
      checkpoint_every: epochs (of the runs side by side) between checkpoints; None for as often as costs one percent of
        the time, and the first after ten seconds at the earliest.
      tables: whether tables are written to the workdir.
      progress: whether to show a bar (outside of terminals and notebooks, a line now and then), a `Bar` of one's own,
        or a function that is called at the start and after every epoch.
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
    search = Search(
        task=task, space=Space(space), train=train, evaluate={} if evaluate is None else evaluate, num_runs=num_runs,
        epochs=epochs, batch_size=batch_size, seeds=seeds, seed=seed, first_run=first_run, rank_by=rank_by,
        mode=mode, policy=policy, sampler=sampler, evaluate_every=evaluate_every,
        evaluate_batch_size=evaluate_batch_size, keep=keep,
    )  # fmt: skip
    how = Execution(
        workdir=workdir, identity=identity, checkpoint_every=checkpoint_every, tables=tables, progress=progress,
        stop=stop, mesh=mesh, runs_in_memory=runs_in_memory, runs_per_batch=runs_per_batch,
    )  # fmt: skip
    return _fit(search, how)


def _fit(search: Search, how: Execution) -> Result:
    mesh = parallel.choose_mesh(search.num_runs, search.batch_size) if how.mesh is None else how.mesh
    trainer = Trainer(search, mesh, how.runs_in_memory, how.runs_per_batch)
    for doubt in _doubts(trainer):
        warnings.warn(doubt, stacklevel=3)
    with contextlib.ExitStack() as stack:
        storage = None
        if how.workdir is not None:
            trainer.check_storable()
            storage = Storage(Path(how.workdir), how.identity or trainer.identity(), how.checkpoint_every)
            stack.callback(storage.close)
        show = Bar() if how.progress is True else how.progress or (lambda progress: None)
        if isinstance(show, Bar):
            stack.enter_context(show)
        asked = stack.enter_context(_interrupts(storage is not None)) if how.stop is None else how.stop
        result = _train(trainer, storage, show, asked, how.tables)
    if how.stop is None and result.stopped:
        raise KeyboardInterrupt(f"stopped after {result.ranking.epochs.max()} epochs; the same call goes on from there")
    return result


def _doubts(trainer: Trainer) -> Iterator[str]:
    """What is allowed, but may be a mistake."""
    search = trainer.search
    if search.columns is not None:  # said of the population before
        return
    if strange := search.not_finite():
        told = ", ".join(f"{count} in {name}" for name, count in strange.items())
        yield f"the data have numbers that are NaN or infinite: {told}"
    yield from search.other_dtypes()
    if search.policy is not None and not any(map(search.stops_runs, range(1, search.epochs))):
        yield f"policy is {search.policy}, which stops no run before the last of {search.epochs} epochs"
    unread = [name for name in search.space.names if name not in trainer.groups.read]
    if unread and search.sampler is None:  # from which further groups may come
        yield f"space has {', '.join(map(repr, unread))}, which the task never reads"


def _train(
    trainer: Trainer,
    storage: Storage | None,
    show: Callable[[Progress], None],
    asked: Callable[[], int],
    tables: bool,
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
        spent = seconds + time.monotonic() - started
        return Result.of(Work(search, state.outcome, trainer.mesh), spent, stopped, step == len(plan))

    show(Progress(step, plan, so_far(), saved=False))
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
        result, ends = so_far(), bool(stopped) or step == len(plan)
        saved = storage is not None and (due or ends)
        if storage and saved:
            storage.save(step, state, {"seconds": result.seconds, **trainer.notes(state)})
        reporting = time.monotonic()
        if storage and saved and tables and not ends:
            storage.write_tables(result)
        show(Progress(step, plan, result, saved))
        if storage and saved:
            storage.reporting = time.monotonic() - reporting
    if storage:
        storage.wait()
    if stopped and search.keep == "all":
        state = state.with_ended({group: np.flatnonzero(members >= 0) for group, members in state.members.items()})
    result = so_far()
    if storage and tables:
        storage.write_tables(result)
    return result


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
      ValueError, TypeError: for a run that the population does not have, or an option that would make it another.
    """
    check_is("result", result, Result, "what fit returned")
    if result.work is None:
        raise ValueError("result was loaded, without its task; fit, called again with the same workdir, gives it")
    search, outcome = result.work.search, result.work.outcome
    if not isinstance(run, numbers.Integral) or run not in search.runs:
        raise ValueError(f"run is {run!r}; it must be {search.runs[0]} to {search.runs[-1]}")
    allowed = [field.name for field in dataclasses.fields(Execution)]
    if strange := [name for name in options if name not in allowed]:
        raise TypeError(f"replay takes no {strange[0]!r}; beside epochs it takes {', '.join(allowed)}")
    own = {name: values[[run - search.first_run]] for name, values in outcome.columns.items()}
    alone = dataclasses.replace(
        search,
        num_runs=1,
        first_run=run,
        epochs=search.epochs if epochs is None else epochs,
        policy=None,
        sampler=None,
        columns=own,
    )
    return _fit(alone, Execution(**{"mesh": result.work.mesh, **options}))


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
