"""Do a program's work: train its populations to their end, with checkpoints, and write the workdir."""

import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import cli, cluster, event_files, workdir
from experiments.cli import UserError
from experiments.progress import Monitor, Output, Stats
from experiments.workdir import Outcome
from highway_jax import data, parallel, search, training
from highway_jax.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Job:
    """What a program wants done.

    Attributes:
      config: the program's config, checked.
      networks: the kinds of network, trained one after another.
      space: where hyperparameters are drawn from.
      recipe: what the runs of a kind of network train, by the kind's name.
      train: what they train on.
      evaluate: what their accuracy is measured on, by the name of the column that it goes to.
      title: all of it in a few words.
      draw: the figures of what came out, by file name.
      keep_params: whether every run's parameters after the last epoch are a result.
    """

    config: ConfigDict
    networks: tuple[str, ...]
    space: search.SearchSpace
    recipe: Callable[[str], training.Recipe]
    train: data.Split
    evaluate: Mapping[str, data.Split]
    title: str
    draw: Callable[[Mapping[str, Outcome]], Mapping[str, Figure]]
    keep_params: bool = False


@struct.dataclass
class State:
    """A population's training so far: all that going on from here needs.

    Attributes:
      population: its runs.
      train_loss: (runs, epochs) mean training losses, NaN where still to come.
      accuracy: (runs, epochs) accuracies on every split that is evaluated, NaN where they were not.
      best_params: the best run's parameters, after its best epoch.
    """

    population: training.Run
    train_loss: np.ndarray
    accuracy: dict[str, np.ndarray]
    best_params: Any


def do(job: Job, directory: Path, console: Output) -> dict[str, Any]:
    """Do a job, or what is left of it, in a workdir; returns what is then its `summary.json`.

    Raises:
      UserError: for a mistake of the user's.
      cli.Interrupted: when a signal stopped it; a checkpoint and the results so far are written.
    """
    config, count = job.config, len(job.train.labels)
    if config.batch_size > count:
        raise UserError(
            f"config.batch_size is {config.batch_size}; it must be at most {count}, the number of training images"
        )
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    mesh = find_devices(config)
    with workdir.opened(directory, config) as done:
        if done:  # by another process, while this one got ready
            return done
        console.print(
            f"{job.title}: {count} training images, {_count(config.num_runs, 'run')} "
            f"of each network ({', '.join(job.networks)}), {_count(config.epochs, 'epoch')}, "
            f"on {_devices(mesh)}"
        )
        try:
            outcomes = _train(job, directory, mesh, console)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
                raise
            raise UserError(
                f"a device's memory is too small for config.runs_per_batch {config.runs_per_batch} and "
                f"config.num_runs {config.num_runs}; lower one of them"
            ) from error
        summary: dict[str, Any] = {}
        if jax.process_index() == 0:
            summary = workdir.finish(directory, outcomes, job.draw(outcomes))
    parallel.agree()
    if jax.process_index():
        sys.exit()  # the first process says what came out
    return summary


def find_devices(config: ConfigDict) -> Mesh:
    """The devices to train on, as `config.mesh` says or by default."""
    try:
        devices = jax.devices()
    except RuntimeError as error:  # such as JAX_PLATFORMS naming what is not there
        raise UserError(f"JAX finds no device: {data.first_line(error)}") from error
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
    steps = config.num_runs * (len(job.train.labels) // config.batch_size)
    monitor = Monitor(job.networks, config.epochs, steps, config.log_every, console)
    with cli.stop_requests() as stop, monitor:
        for network in job.networks:
            outcomes[network] = train_network(job, network, directory, mesh, monitor, stop)
            if jax.process_index() == 0:
                workdir.write_tables(directory, outcomes, bool(config.evaluate_every))
                with _writing(directory):
                    workdir.write_params(directory, network, outcomes[network])
            if stop.agreed:
                done = f"after epoch {outcomes[network].train_loss.shape[1]} of {config.epochs} of {network}"
                raise cli.Interrupted(stop.agreed, f"{done}; the same command goes on from there")
    return outcomes


def train_network(
    job: Job, network: str, directory: Path, mesh: Mesh, monitor: Monitor, stop: cli.StopRequest
) -> Outcome:
    """Train one kind of network's population to its end, or to a stop, from its last checkpoint if there is one."""
    config, recipe = job.config, job.recipe(network)
    epochs, runs = config.epochs, config.num_runs
    with contextlib.closing(Checkpoints(directory / workdir.CHECKPOINTS / network)) as checkpoints:
        state, notes = _last_state(job, recipe, mesh, checkpoints)
        if isinstance(state, Outcome):
            return state
        train, evaluated = (parallel.replicate(mesh, split) for split in (job.train, dict(job.evaluate)))
        epoch, started = int(state.population.epoch[0]), time.monotonic() - notes["seconds"]
        # Of the same number at once as before: on an accelerator it decides the rounding.
        runs_per_batch = config.runs_per_batch or notes.get("runs_per_batch")
        if runs_per_batch is None:
            most = search.choose_runs_per_batch(recipe, state.population, job.train, config.batch_size, mesh)
            runs_per_batch = int(parallel.agree(most).min())
        train_epoch = search.population_epoch(recipe, config.batch_size, mesh, runs_per_batch)
        evaluate = jax.jit(
            parallel.map_runs(lambda run, split: training.evaluate(recipe, run, split), mesh, runs_per_batch)
        )
        schedule = CheckpointSchedule(config.checkpoint_every, state)
        monitor.begin(network, epoch)
        events = config.tensorboard and jax.process_index() == 0
        with event_files.writer(directory / "tensorboard" / network, epoch, events) as log:
            while epoch < epochs:
                population, losses = train_epoch(state.population, train, search.epoch_key(config.seed, epoch))
                _wait(losses)
                epoch += 1
                with _writing(checkpoints.directory):
                    due = schedule.due(epoch, checkpoints)
                said = parallel.agree(stop.signal, due)  # the first message of an epoch: one that is lost is noticed
                stop.agreed, due = int(said[:, 0].max()), bool(said[0, 1])
                state = _advance(state, population, _host(losses, runs), epoch)
                stats = Stats.of(state.train_loss[:, :epoch])
                monitor.move(network, epoch, stats)
                log(epoch, stats)
                if epoch == epochs or (config.evaluate_every and epoch % config.evaluate_every == 0):
                    accuracy = {
                        name: _with_column(table, epoch, _host(evaluate(population, evaluated[name])["accuracy"], runs))
                        for name, table in state.accuracy.items()
                    }
                    state = dataclasses.replace(state, accuracy=accuracy)
                notes = {"seconds": time.monotonic() - started, "runs_per_batch": runs_per_batch}
                with _writing(checkpoints.directory):
                    if epoch < epochs and (stop.agreed or due):
                        _check_space(checkpoints.directory, state)
                        checkpoints.save(epoch, state, notes)
                    if stop.agreed:
                        checkpoints.wait()
                        break
        outcome = Outcome(
            hyperparameters=_host(state.population.hyperparameters, runs),
            train_loss=state.train_loss[:, :epoch],
            accuracy={name: table[:, :epoch] for name, table in state.accuracy.items()},
            best_params=state.best_params,
            final_params=_host(state.population.params, runs) if job.keep_params else {},
            first_run=config.first_run,
            seconds=notes["seconds"],
        )
        if epoch == epochs:
            with _writing(checkpoints.directory):
                checkpoints.save(epoch, outcome, notes)
                checkpoints.wait()
    return outcome


class CheckpointSchedule:
    """When a checkpoint is due: every so many epochs, or as often as costs a hundredth of the time."""

    share = 0.01
    bytes_per_second = 2e8  # a slow disk; measured from the first checkpoint on

    def __init__(self, every: int | None, state: State):
        self.every, self.last = every, time.monotonic()
        self.cost = 0.1 + _size(state) / self.bytes_per_second

    def due(self, epoch: int, checkpoints: Checkpoints) -> bool:
        """Whether to save after this epoch; raises the error of a save that failed."""
        busy, now = checkpoints.busy(), time.monotonic()
        if self.every is not None:
            return epoch % self.every == 0
        if busy or now - self.last < (checkpoints.seconds or self.cost) / self.share:
            return False
        self.last = now
        return True


def _advance(state: State, population: training.Run, losses: np.ndarray, epoch: int) -> State:
    """The state after an epoch; a best run may diverge later, so its parameters are kept now."""
    before = search.rank(state.train_loss[:, : epoch - 1]) if epoch > 1 else None
    train_loss = _with_column(state.train_loss, epoch, losses)
    ranking = search.rank(train_loss[:, :epoch])
    best = ranking.order[0]
    best_params = state.best_params
    if before is None or best != before.order[0] or ranking.best_loss[best] < before.best_loss[best]:
        best_params = parallel.gather(search.take_run(population.params, best))
    return dataclasses.replace(state, population=population, train_loss=train_loss, best_params=best_params)


def _with_column(table: np.ndarray, epoch: int, values: np.ndarray) -> np.ndarray:
    """A copy, since the table may be on its way into a checkpoint."""
    table = table.copy()
    table[:, epoch - 1] = values
    return table


def _last_state(
    job: Job, recipe: training.Recipe, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[State | Outcome, dict[str, Any]]:
    """The newest intact checkpoint's state, or a new one, and its notes: the `seconds` of training, at least.

    After the last epoch that is an `Outcome`: of what is done, nobody needs the whole population.
    """
    config = job.config

    def start() -> training.Run:
        return search.init_population(
            recipe, job.space, config.seed, config.num_runs, job.train.images, mesh, config.first_run
        )

    table = np.full((config.num_runs, config.epochs), np.nan, np.float32)
    accuracy = dict.fromkeys(job.evaluate, table)
    if step := cluster.at_first(lambda: _newest_intact(checkpoints)):
        like = _like(jax.eval_shape(start), table, accuracy, mesh)
        if step < config.epochs:
            return checkpoints.restore(step, like)
        done = Outcome(
            hyperparameters=jax.tree.map(lambda leaf: table[:, 0], like.population.hyperparameters),
            train_loss=table,
            accuracy=accuracy,
            best_params=like.best_params,
            final_params=like.best_params if job.keep_params else {},  # the shapes are the file's
            first_run=config.first_run,
            seconds=0.0,
        )
        outcome, notes = checkpoints.restore(step, done)
        return dataclasses.replace(outcome, seconds=notes["seconds"]), notes
    population = start()
    return State(population, table, accuracy, parallel.gather(search.take_run(population.params, 0))), {"seconds": 0.0}


def _newest_intact(checkpoints: Checkpoints) -> int | None:
    """The newest checkpoint's step; damaged ones are removed."""
    for step in reversed(checkpoints.steps()):
        if not (file := checkpoints.damaged_file(step)):
            return step
        checkpoints.remove(step)
        cli.warn(f"{checkpoints.directory}: epoch {step}'s checkpoint is damaged ({file}); using the one before it")
    return None


def _like(population: training.Run, table: np.ndarray, accuracy: dict[str, np.ndarray], mesh: Mesh) -> State:
    """What a checkpoint's state looks like: shapes, dtypes, and where each array goes."""
    runs = NamedSharding(mesh, PartitionSpec(parallel.RUNS))
    split = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=runs), population)
    one = jax.tree.map(lambda leaf: np.empty(leaf.shape[1:], leaf.dtype), split.params)
    return State(split, table, accuracy, one)


def _check_space(directory: Path, state: State) -> None:
    def check() -> None:
        needed, free = _size(state), shutil.disk_usage(directory).free
        if free < needed:
            needs, has = f"{needed / 2**20:,.1f} MiB", f"{free / 2**20:,.1f} MiB"
            raise UserError(f"{directory}: the disk is full; a checkpoint needs {needs}, and {has} are free")

    cluster.at_first(check)


def _size(state: State) -> int:
    """In bytes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except (UserError, cli.Elsewhere, parallel.ProcessLost):
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
