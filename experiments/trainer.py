"""Do a program's work: train its populations to their end, with checkpoints, and write the workdir."""

import contextlib
import dataclasses
import functools
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import cli, event_files, settings, workdir
from experiments.cli import UserError
from experiments.progress import Monitor, Output, Stats
from experiments.workdir import Outcome
from highway_jax import data, parallel, search, training
from highway_jax.checkpoint import Checkpoints

# `sample(network, first_run, count, outcome)`: the hyperparameters of `count` runs from that number on, of shape
# (count,), where `outcome` is what the network's runs have given so far.
Sampler = Callable[[str, int, int, Outcome], training.Hyperparameters]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a program wants done.

    Attributes:
      config: the program's config, checked.
      networks: the kinds of network, trained one after another.
      sample: where the runs' hyperparameters come from.
      recipe: what the runs of a kind of network train, by the kind's name.
      train: what they train on.
      evaluate: what their accuracy is measured on, by the name of the column that it goes to.
      title: all of it in a few words.
      draw: the figures of what came out, by file name.
      implementations: of the layers of each kind of network, as `MLP` has it; those left out are XLA's.
      halving: how runs are stopped early, if they are.
      keep_params: whether every run's parameters after its last epoch are a result.
      inputs: further trees of arrays that the training depends on, such as a teacher's parameters, by name.
    """

    config: ConfigDict
    networks: tuple[str, ...]
    sample: Sampler
    recipe: Callable[[str], training.Recipe]
    train: data.Split
    evaluate: Mapping[str, data.Split]
    title: str
    draw: Callable[[Mapping[str, Outcome]], Mapping[str, Figure]]
    implementations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    halving: search.Halving | None = None
    keep_params: bool = False
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def identity(self) -> workdir.Identity:
        """What decides its numbers."""
        splits = {"train": self.train, **self.evaluate}
        md5 = {name.removesuffix("_accuracy"): data.md5(split) for name, split in splits.items()}
        for name, tree in self.inputs.items():
            digest = hashlib.md5(usedforsecurity=False)
            for leaf in jax.tree.leaves(tree):
                digest.update(np.ascontiguousarray(leaf).data)
            md5[name] = digest.hexdigest()
        return workdir.Identity(self.config, md5, self.implementations)


@struct.dataclass
class State:
    """The training of one kind of network so far: all that going on from here needs.

    Attributes:
      population: the runs that are trained now.
      members: (members,) which of all runs those are, ascending; further rows of the population fill up the devices.
      outcome: what all runs have given so far; NaN where they were not trained or evaluated.
    """

    population: training.Run
    members: np.ndarray
    outcome: Outcome


def summary_of(config: ConfigDict, directory: Path, console: Output, prepare: Callable[[], Job]) -> dict[str, Any]:
    """The `summary.json` of a config's work in a workdir; what is not done yet of it is done now.

    Args:
      config: the config, checked.
      directory: the workdir.
      console: where output goes.
      prepare: loads what the work needs.

    Raises:
      UserError: for a mistake of the user's.
      cli.Interrupted: when a signal stopped it; a checkpoint and the results so far are written.
    """
    settings.pin()
    if summary := workdir.finished(directory, config):
        if parallel.at_first(lambda: config.data_dir is not None):  # it may be another data set than the results'
            about = workdir.read_provenance(directory)
            workdir.check_data(directory, about, prepare().identity.data_md5)
        console.print(f"{directory} holds these results:")
        return summary
    return do(prepare(), directory, console)


def do(job: Job, directory: Path, console: Output) -> dict[str, Any]:
    """Do a job, or what is left of it, in a workdir; see `summary_of`."""
    config, count = job.config, len(job.train.labels)
    check_batch_size(config, job.train)
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    mesh = find_devices(config)
    _check_alike(job.identity, mesh)
    with workdir.opened(directory, job.identity, workdir.provenance(mesh, config.runs_per_batch)) as done:
        if done:  # by another process, while this one got ready
            return done
        console.print(
            f"{job.title}: {count} training images, {_count(config.num_runs, 'run')} "
            f"of each network ({', '.join(job.networks)}), {_count(config.epochs, 'epoch')}, "
            f"on {_devices(mesh)}{', fused layers' * ('fused' in job.implementations.values())}"
        )
        try:
            outcomes = _train(job, directory, mesh, console)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
                raise
            raise UserError(
                f"a device's memory is too small for config.runs_in_memory {config.runs_in_memory} and "
                f"config.runs_per_batch {config.runs_per_batch}; set one of them lower (None: by the memory there is)"
            ) from error
        summary: dict[str, Any] = {}
        if jax.process_index() == 0:
            summary = workdir.finish(directory, outcomes, job.draw(outcomes))
    parallel.agree()
    if jax.process_index():
        sys.exit()  # the first process says what came out
    return summary


def _check_alike(identity: workdir.Identity, mesh: Mesh) -> None:
    """Refuse processes that have been given different work, or read different data."""
    said = parallel.agree(*np.frombuffer(bytes.fromhex(identity.fingerprint()), np.int32), *mesh.devices.shape)
    if strange := np.flatnonzero((said != said[0]).any(axis=1)).tolist():
        raise UserError(
            f"process {strange[0]} has another config, mesh, data or implementation than process 0; "
            "all must have the same"
        )


def check_batch_size(config: ConfigDict, train: data.Split) -> None:
    """Refuse batches that are larger than the training set."""
    count = len(train.labels)
    if config.batch_size > count:
        raise UserError(
            f"config.batch_size is {config.batch_size}; it must be at most {count}, the number of training images"
        )


def find_devices(config: ConfigDict) -> Mesh:
    """The devices to train on, as `config.mesh` says or by default."""
    devices = jax.devices()
    if config.mesh is None:
        return parallel.choose_mesh(config.num_runs, config.batch_size)
    runs, shares = config.mesh
    if runs * shares > len(devices) or (runs * shares < len(devices) and jax.process_count() > 1):
        allowed = "all" if jax.process_count() > 1 else "at most"
        raise UserError(f"config.mesh is {config.mesh}; it must take {allowed} {_count(len(devices), 'device')}")
    return parallel.runs_mesh(devices[: runs * shares], shares)


def _devices(mesh: Mesh) -> str:
    """Such as "8 cpu devices of 2 processes, 4 to a batch"."""
    text = _count(mesh.size, mesh.devices.flat[0].device_kind + " device")
    text += f" of {jax.process_count()} processes" * (jax.process_count() > 1)
    return text + f", {mesh.shape[parallel.DATA]} to a batch" * (mesh.shape[parallel.DATA] > 1)


def _train(job: Job, directory: Path, mesh: Mesh, console: Output) -> dict[str, Outcome]:
    config = job.config
    outcomes: dict[str, Outcome] = {}
    batches = len(job.train.labels) // config.batch_size
    monitor = Monitor(job.networks, config.epochs, batches, config.log_every, console)
    with cli.stop_requests() as stop, monitor:
        for network in job.networks:
            outcomes[network] = train_network(job, network, directory, mesh, monitor, stop)
            if jax.process_index() == 0:
                with _writing(directory):
                    workdir.write_results(directory, network, outcomes, bool(config.evaluate_every))
            if stop.agreed:
                raise cli.Interrupted(stop.agreed, f"after {monitor.place}; the same command goes on from there")
    return outcomes


def train_network(
    job: Job, network: str, directory: Path, mesh: Mesh, monitor: Monitor, stop: cli.StopRequest
) -> Outcome:
    """Train the runs of one kind of network to their end, or to a stop, from the last checkpoint if there is one.

    As many as memory holds are trained side by side, a group, and the next ones when those have ended. What is counted
    here are steps, each an epoch of a group.
    """
    config, recipe = job.config, job.recipe(network)
    with contextlib.closing(Checkpoints(directory / workdir.CHECKPOINTS / network)) as checkpoints:
        state, step, notes = _last_state(job, network, recipe, mesh, checkpoints)
        plan = runs_by_step(config, notes["runs_in_memory"], job.halving)
        monitor.begin(network, plan, step)
        if isinstance(state, Outcome):
            return dataclasses.replace(state, seconds=notes["seconds"])
        train, evaluated = (parallel.replicate(mesh, split) for split in (job.train, dict(job.evaluate)))
        started = time.monotonic() - notes["seconds"]
        # Of the same number at once as before: on an accelerator it decides the rounding.
        runs_per_batch = config.runs_per_batch or notes.get("runs_per_batch")
        if runs_per_batch is None:
            most = search.choose_runs_per_batch(recipe, state.population, job.train, config.batch_size, mesh)
            runs_per_batch = int(parallel.agree(most).min())
        notes["runs_per_batch"] = runs_per_batch
        train_epoch = search.population_epoch(recipe, config.batch_size, mesh, runs_per_batch)
        evaluate = jax.jit(
            parallel.map_runs(lambda run, split: training.evaluate(recipe, run, split), mesh, runs_per_batch)
        )
        schedule = CheckpointSchedule(config.checkpoint_every, state)
        events = config.tensorboard and jax.process_index() == 0
        with event_files.writer(directory / "tensorboard" / network, step, events) as log:
            while step < len(plan):
                epoch = step % config.epochs
                population, losses = train_epoch(state.population, train, search.epoch_key(config.seed, epoch))
                _wait(losses)
                step, epoch = step + 1, epoch + 1
                with _writing(checkpoints.directory):
                    due = schedule.due(step, checkpoints)
                said = parallel.agree(stop.signal, due)  # the first message after an epoch: it tells who is lost
                stop.agreed, due = int(said[:, 0].max()), bool(said[0, 1])
                state = _advance(state, population, losses, epoch)
                stats = Stats.of(state.outcome.train_loss)
                monitor.move(network, step, stats)
                log(step, stats)
                stopping, ending = bool(stop.agreed), epoch == config.epochs
                halving = job.halving if job.halving and job.halving.due(epoch) and not ending else None
                if ending or (config.evaluate_every and epoch % config.evaluate_every == 0):
                    accuracy = {name: evaluate(population, split)["accuracy"] for name, split in evaluated.items()}
                    state = _with_accuracy(state, accuracy, epoch)
                if job.keep_params and (ending or halving or stopping):
                    state = _with_final_params(state)
                if halving:
                    state = _halve(state, halving, mesh)
                if ending and step < len(plan):
                    first, outcome = step // config.epochs * notes["runs_in_memory"], state.outcome
                    del population, state  # makes room
                    state = _begin(job, network, recipe, mesh, outcome, first, plan[step])
                notes |= {"seconds": time.monotonic() - started, "step": step}
                with _writing(checkpoints.directory):
                    if step < len(plan) and (stopping or due):
                        _check_space(checkpoints.directory, state)
                        checkpoints.save(step, state, notes)
                    if stopping:
                        checkpoints.wait()
                        break
        outcome = dataclasses.replace(state.outcome, seconds=notes["seconds"])
        if step == len(plan):
            with _writing(checkpoints.directory):
                checkpoints.save(step, outcome, notes)
                checkpoints.wait()
    return outcome.so_far()


def runs_by_step(config: ConfigDict, runs_in_memory: int, halving: search.Halving | None) -> list[int]:
    """How many runs are trained in every step."""
    plan = []
    for first in range(0, config.num_runs, runs_in_memory):
        runs = min(runs_in_memory, config.num_runs - first)
        for epoch in range(1, config.epochs + 1):
            plan.append(runs)
            if halving is not None and halving.due(epoch):
                runs = halving.num_kept(runs)
    return plan


class CheckpointSchedule:
    """When a checkpoint is due: every so many epochs, or as often as costs a hundredth of the time."""

    share = 0.01
    bytes_per_second = 2e8  # a slow disk; measured from the first checkpoint on

    def __init__(self, every: int | None, state: State):
        self.every, self.last = every, time.monotonic()
        self.cost = 0.1 + search.num_bytes(state) / self.bytes_per_second

    def due(self, step: int, checkpoints: Checkpoints) -> bool:
        """Whether to save after this step; raises the error of a save that failed."""
        busy, now = checkpoints.busy(), time.monotonic()
        if self.every is not None:
            return step % self.every == 0
        if busy or now - self.last < (checkpoints.seconds or self.cost) / self.share:
            return False
        self.last = now
        return True


def _last_state(
    job: Job, network: str, recipe: training.Recipe, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[State | Outcome, int, dict[str, Any]]:
    """The newest intact checkpoint, or a beginning; the steps done; notes, with what a checkpoint must have.

    After the last step that is an `Outcome`: of what is done, nobody needs the population.
    """
    config, fingerprint = job.config, job.identity.fingerprint(network)
    run = run_shapes(job, recipe)
    outcome = _blank(job, run)
    if step := parallel.at_first(lambda: _newest_intact(checkpoints, fingerprint)):
        notes = checkpoints.notes(step)
        plan = runs_by_step(config, notes["runs_in_memory"], job.halving)
        if step == len(plan):
            return _restored(checkpoints, step, outcome), step, notes
        rows, sharding = parallel.padded(plan[step], mesh), parallel.over_runs(mesh)
        population = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype, sharding=sharding), run
        )
        state = State(population, np.empty(plan[step], int), outcome)
        return _restored(checkpoints, step, state, plan[step]), step, notes
    rows, memory = mesh.shape[parallel.RUNS], parallel.free_memory(mesh)
    at_once = config.runs_in_memory or int(
        parallel.agree(search.choose_runs_in_memory(run, config.num_runs, rows, memory)).min()
    )
    if job.halving is not None and not config.runs_in_memory and at_once < config.num_runs:
        raise UserError(
            f"config.runs_in_memory is None, and memory holds {at_once} of {config.num_runs} runs; for "
            f"config.search.halving, which compares runs side by side, say how many, such as {at_once}"
        )
    notes = {"fingerprint": fingerprint, "seconds": 0.0, "runs_in_memory": at_once}
    return _begin(job, network, recipe, mesh, outcome, 0, min(at_once, config.num_runs)), 0, notes


def _newest_intact(checkpoints: Checkpoints, fingerprint: str) -> int | None:
    """The newest checkpoint's step; damaged ones are removed."""
    for step in reversed(checkpoints.steps()):
        if not (file := checkpoints.damaged_file(step)):
            notes = checkpoints.notes(step)
            if notes.get("fingerprint") != fingerprint:
                raise UserError(
                    f"{checkpoints.directory}: checkpoint {step} is of another config, other data or another "
                    "implementation; choose another --workdir"
                )
            if notes.get("step") != step:
                raise UserError(
                    f"{checkpoints.directory}: checkpoint {step} was saved as {notes.get('step')}; give it its "
                    "name back"
                )
            return step
        checkpoints.remove(step)
        cli.warn(f"{checkpoints.directory}: checkpoint {step} is damaged ({file}); using the one before it")
    return None


def _restored(checkpoints: Checkpoints, step: int, like: Any, rows: int = 0) -> Any:
    try:
        return checkpoints.restore(step, like, rows)
    except ValueError as error:
        raise UserError(f"{checkpoints.directory}: {data.first_line(error)}; choose another --workdir") from error


def run_shapes(job: Job, recipe: training.Recipe) -> training.Run:
    """A run, as shapes and dtypes."""
    key = jax.random.key(0)
    hyperparameters = jax.eval_shape(functools.partial(search.sample, search.SearchSpace()), key)
    return jax.eval_shape(lambda hp: training.init(recipe, hp, key, job.train.images[:1]), hyperparameters)


def _blank(job: Job, run: training.Run) -> Outcome:
    """The outcome of runs that have not begun; all are of the given one's shapes and dtypes."""
    config, params = job.config, run.params
    runs, table = config.num_runs, np.full((config.num_runs, config.epochs), np.nan, np.float32)
    return Outcome(
        hyperparameters=jax.tree.map(lambda leaf: np.zeros(runs, leaf.dtype), run.hyperparameters),
        train_loss=table,
        accuracy=dict.fromkeys(job.evaluate, table),
        best_params=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params),
        final_params=jax.tree.map(lambda leaf: np.zeros((runs, *leaf.shape), leaf.dtype), params)
        if job.keep_params
        else {},
        first_run=config.first_run,
        seconds=0.0,
    )


def _begin(
    job: Job, network: str, recipe: training.Recipe, mesh: Mesh, outcome: Outcome, first: int, count: int
) -> State:
    """Start `count` runs, those from index `first` on."""
    first_run = job.config.first_run + first
    draws = job.sample(network, first_run, count, outcome)
    population = search.init_population(recipe, draws, job.config.seed, job.train.images, mesh, first_run)
    members = np.arange(first, first + count)
    tables = jax.tree.map(lambda table, drawn: _with(table, members, drawn), outcome.hyperparameters, draws)
    return State(population, members, dataclasses.replace(outcome, hyperparameters=tables))


def _advance(state: State, population: training.Run, losses: jax.Array, epoch: int) -> State:
    """The state after an epoch; a best run may diverge later, so its parameters are kept now."""
    outcome, members = state.outcome, state.members
    train_loss = _with(outcome.train_loss, (members, epoch - 1), _host(losses, len(members)))
    before, after = search.rank(outcome.train_loss), search.rank(train_loss)
    best = after.order[0]
    best_params = outcome.best_params
    if not before.epochs.any() or best != before.order[0] or after.best_loss[best] < before.best_loss[best]:
        best_params = parallel.gather(search.take_run(population.params, np.searchsorted(members, best)))
    outcome = dataclasses.replace(outcome, train_loss=train_loss, best_params=best_params)
    return State(population, members, outcome)


def _with_accuracy(state: State, accuracy: Mapping[str, jax.Array], epoch: int) -> State:
    """The state with the population's accuracies after an epoch."""
    where = state.members, epoch - 1
    tables = {
        name: _with(table, where, _host(accuracy[name], len(state.members)))
        for name, table in state.outcome.accuracy.items()
    }
    return dataclasses.replace(state, outcome=dataclasses.replace(state.outcome, accuracy=tables))


def _with_final_params(state: State) -> State:
    """The state with the population's parameters among the outcome."""
    now = _host(state.population.params, len(state.members))
    params = jax.tree.map(lambda table, leaf: _with(table, state.members, leaf), state.outcome.final_params, now)
    return dataclasses.replace(state, outcome=dataclasses.replace(state.outcome, final_params=params))


def _halve(state: State, halving: search.Halving, mesh: Mesh) -> State:
    """The state without the runs that stop."""
    kept = halving.kept(state.outcome.train_loss[state.members])
    return dataclasses.replace(
        state, population=search.take_runs(state.population, kept, mesh), members=state.members[kept]
    )


def _with(table: np.ndarray, where: Any, values: Any) -> np.ndarray:
    """A copy, since the table may be on its way into a checkpoint."""
    table = table.copy()
    table[where] = values
    return table


def _check_space(directory: Path, state: State) -> None:
    def check() -> None:
        needed, free = search.num_bytes(state), shutil.disk_usage(directory).free
        if free < needed:
            needs, has = f"{needed / 2**20:,.1f} MiB", f"{free / 2**20:,.1f} MiB"
            raise UserError(f"{directory}: the disk is full; a checkpoint needs {needs}, and {has} are free")

    parallel.at_first(check)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except (UserError, parallel.Elsewhere, parallel.ProcessLost):
        raise
    except Exception as error:  # Orbax and TensorStore have many
        if parallel.blames_another(error):
            raise parallel.ProcessLost from error
        raise UserError(f"{directory}: a checkpoint cannot be written: {data.first_line(error)}") from error


def _wait(array: Any) -> None:
    """Wait for a computation with an ear for signals, which Python cannot hear inside JAX."""
    while not array.is_ready():
        time.sleep(0.002)


def _host(tree: Any, num_runs: int) -> Any:
    """Copy to the host, without the runs that only fill up the devices."""
    return jax.tree.map(lambda leaf: np.array(leaf)[:num_runs], parallel.gather(tree))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
