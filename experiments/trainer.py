"""Do a program's work: train its populations to their end, with checkpoints, and write the workdir."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import cli, event_files, settings, workdir
from experiments.cli import UserError
from experiments.jobs import Job
from experiments.progress import Monitor, Output, Stats
from experiments.workdir import Outcome
from highway_jax import parallel, population


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
        given = config.data_dir is not None or cli.is_data_function(config.dataset)
        if parallel.at_first(lambda: given):  # it may be another data set than the results'
            about = workdir.read_provenance(directory)
            workdir.check_data(directory, about, prepare().identity.data_md5)
        console.print(f"{directory} holds these results:")
        return summary
    return do(prepare(), directory, console)


def do(job: Job, directory: Path, console: Output) -> dict[str, Any]:
    """Do a job, or what is left of it, in a workdir; see `summary_of`."""
    config, count = job.config, len(job.train["y"])
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    mesh = find_devices(config)
    _check_alike(job.identity, mesh)
    with workdir.opened(directory, job.identity, workdir.provenance(mesh, config.runs_per_batch)) as done:
        if done:  # by another process, while this one got ready
            return done
        console.print(
            f"{job.title}: {count} training examples, {_count(config.num_runs, 'run')} "
            f"of each network ({', '.join(job.networks)}), {_count(config.epochs, 'epoch')}, "
            f"on {_devices(mesh)}{', fused layers' * ('fused' in job.implementations.values())}"
        )
        try:
            outcomes = _train(job, directory, mesh, console)
        except population.WorkdirError as error:
            raise UserError(str(error)) from error
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
    batches = len(job.train["y"]) // config.batch_size
    monitor = Monitor(job.networks, config.epochs, batches, config.log_every, console)
    with cli.stop_requests() as stop, monitor, _warnings_in_a_line():
        for network in job.networks:
            result = train_network(job, network, directory, mesh, monitor, stop)
            outcomes[network] = Outcome.of(result)
            if jax.process_index() == 0:
                with population.writing(directory, "results"):
                    workdir.write_results(directory, network, outcomes, bool(config.evaluate_every))
            if result.stopped:
                raise cli.Interrupted(result.stopped, f"after {monitor.place}; the same command goes on from there")
    return outcomes


def train_network(
    job: Job, network: str, directory: Path, mesh: Mesh, monitor: Monitor, stop: cli.StopRequest
) -> population.Result:
    """Train the runs of one kind of network to their end, or to a stop, from the last checkpoint if there is one."""
    config = job.config
    events = config.tensorboard and jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        log: list[Callable[[int, Stats], None]] = []

        def watch(progress: population.Progress) -> None:
            step, plan, result = progress
            if not log:  # before the first step
                monitor.begin(network, [step.runs for step in plan], step)
                log.append(stack.enter_context(event_files.writer(directory / "tensorboard" / network, step, events)))
                return
            stats = Stats.of(result.curves[job.rank_by])
            monitor.move(network, step, stats)
            log[0](step, stats)

        try:
            return population.fit(
                **job.arguments(network),
                workdir=directory / workdir.CHECKPOINTS / network,
                identity=job.identity.of(network),
                checkpoint_every=config.checkpoint_every,
                progress=watch,
                stop=lambda: stop.signal,
                mesh=mesh,
                runs_in_memory=config.runs_in_memory,
                runs_per_batch=config.runs_per_batch,
            )
        except population.MemoryTooSmall as error:
            raise UserError(f"config.{error}") from error


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """What the library warns of is said as the programs say it."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(category, population.WorkdirWarning):
                cli.warn(str(message))
            else:
                usual(message, category, *rest, **options)

        warnings.simplefilter("always", population.WorkdirWarning)
        warnings.showwarning = show
        yield


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
