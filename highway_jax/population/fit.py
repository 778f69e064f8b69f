"""Train a population of runs, with checkpoints: a task mapped over a space."""

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
    """Train a population of runs: a task mapped over the configurations of a space.

    Each run depends only on the task, its configuration, its seed and the data. It is the same run in any population,
    on any devices, and alone. All runs see the same batches in the same order.

    Args:
      task: what one run does, from `supervised` or written by hand as a `Task`.
      space: the hyperparameters in which runs differ, by name (see `Space`).
      train: the training examples, a tree of arrays with a common leading axis. They are reshuffled in every epoch, and
        examples that do not fill a last batch are left out.
      evaluate: further splits by name, which the task's `evaluate` measures.
      num_runs: the total number of runs.
      epochs: the number of passes over the training examples, unless the policy stops a run earlier.
      batch_size: examples per step.
      seeds: runs per configuration. With more than one, the k-th run of every configuration starts from the same
        random key, so that configurations are compared under equal conditions. With one, every draw from the space has
        its own key.
      seed: seeds the draws of hyperparameters, the initial states and the order of the examples.
      first_run: the number of the first run.
      rank_by: the metric whose best value ranks the runs: `train_` or the name of a split and `_`, followed by the
        name of the metric.
      mode: "min" if lower is better, "max" if higher is better; optional for a loss. Runs that diverge are ranked
        after all others.
      policy: stops runs early (see `Halving`); None trains all runs to the end.
      sampler: chooses hyperparameters instead of the space's distributions: `tpe()`, which learns from earlier runs, or
        a function (see `Sampler`).
      evaluate_every: epochs between evaluations; None evaluates after the last epoch only.
      evaluate_batch_size: examples evaluated at a time. A scalar metric is averaged over these batches; None evaluates
        a split at once, for a metric that is not a mean over examples.
      keep: "best" keeps the state of the best run only, "all" also keeps the state of every run after its last epoch.
      workdir: a directory for checkpoints; None writes nothing. Called again with the same arguments, `fit` resumes
        from the last checkpoint, or returns at once if the search has finished. The tables that `load` reads are
        written with every checkpoint: `runs.csv`, `curves.csv` and `search.json`, which describes them.
      identity: what decides the result, a mapping from names to values that JSON can hold. A search is resumed only if
        its identity is unchanged. By default it holds all arguments that decide the result, the MD5 of the data and a
        digest of the traced task; for a sampler, it holds only whether there is one.
      checkpoint_every: epochs of the runs in memory between checkpoints. None writes them as often as costs about one
        percent of the time, and not in the first ten seconds.
      tables: whether to write tables to the workdir.
      progress: whether to show a progress bar, a `Bar` with other settings, or a function that is called with a
        `Progress` at the start and after every epoch. Outside of terminals and notebooks, a line is printed now and
        then instead of the bar.
      stop: called after every epoch; the search writes a checkpoint and stops if it returns a number other than 0.
        By default, Ctrl-C stops a search with a workdir in this way and then raises `KeyboardInterrupt`.
      mesh: the devices to train on, from `parallel.runs_mesh`; all devices by default. JAX treats a CPU as one device
        unless `parallel.split_cpu()` is called first; training is faster with one device per core.
      runs_in_memory: the number of runs trained side by side; the others follow. By default, as many as memory holds.
      runs_per_batch: the number of runs that a device trains in lockstep; by default one on a CPU and as many as fit
        on an accelerator.

    Returns:
      A `Result`, with all curves and the state of the best run.

    Raises:
      ValueError: if an argument has a wrong value; nothing has been trained then.
      TypeError: if an argument has a wrong type; nothing has been trained then.
      WorkdirError: if the workdir holds another search, or cannot be written to.
      KeyboardInterrupt: after Ctrl-C, once a checkpoint has been written.
      parallel.ProcessLost: if another process of a multi-process search has ended.

    Example:
      Twenty learning rates, ranked by their validation loss:

      ```python
      task = population.supervised(
          model=lambda hp: Net(),
          loss=population.cross_entropy,
          optimizer=lambda hp: optax.adam(hp["lr"]),
      )
      result = population.fit(
          task,
          {"lr": population.log_uniform(1e-4, 1e-1)},
          train={"x": x, "y": y},
          evaluate={"valid": {"x": valid_x, "y": valid_y}},
          num_runs=20,
          epochs=10,
          batch_size=100,
          rank_by="valid_loss",
      )
      result.best.hyperparameters
      ```
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
    """Warnings about arguments that are allowed but may be a mistake."""
    search = trainer.search
    if search.columns is not None:  # a replayed run; the population's own search has warned
        return
    if strange := search.not_finite():
        told = ", ".join(f"{count} in {name}" for name, count in strange.items())
        yield f"the data have numbers that are NaN or infinite: {told}"
    yield from search.other_dtypes()
    if search.policy is not None and not any(map(search.stops_runs, range(1, search.epochs))):
        yield f"policy is {search.policy}, which stops no run before the last of {search.epochs} epochs"
    unread = [name for name in search.space.names if name not in trainer.groups.read]
    if unread and search.sampler is None:  # a sampler may add groups that read them
        yield f"space has {', '.join(map(repr, unread))}, which the task never reads"


def _train(
    trainer: Trainer,
    storage: Storage | None,
    show: Callable[[Progress], None],
    asked: Callable[[], int],
    tables: bool,
) -> Result:
    """Train from the last checkpoint or from the beginning, until the end or until asked to stop."""
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
        said = parallel.agree(asked() or 0, due)  # the first exchange after an epoch, which detects a lost process
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
    """Train one run of a population again on its own, for as many epochs or for more.

    Args:
      result: the result that has the run, from `fit`.
      run: the number of the run.
      epochs: the number of epochs; by default that of the population. No policy stops the run.
      **options: further arguments of `fit` that do not change the run, such as `workdir`. By default, `mesh` is that of
        the population.

    Returns:
      The `Result` of this run alone. Its curve starts with that of the population: bit for bit on a CPU with the
        population's mesh, otherwise up to rounding.

    Raises:
      ValueError: if the population does not have this run, or `result` was loaded from files.
      TypeError: if an option would change the run.

    Example:
      ```python
      longer = population.replay(result, run=17, epochs=100)
      ```
    """
    check_is("result", result, Result, "what fit returned")
    if result.work is None:
        raise ValueError(
            "result was loaded, without its task; fit returns one with it if it is called again with the same workdir"
        )
    search, outcome = result.work.search, result.work.outcome
    if not isinstance(run, numbers.Integral) or run not in search.runs:
        raise ValueError(f"run is {run!r}; it must be {search.runs[0]} to {search.runs[-1]}")
    allowed = [field.name for field in dataclasses.fields(Execution)]
    if strange := [name for name in options if name not in allowed]:
        raise TypeError(f"replay takes no {strange[0]!r}; besides epochs, it takes {', '.join(allowed)}")
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
    """Yield a function that says whether Ctrl-C was pressed. Pressing it a second time interrupts at once."""
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
