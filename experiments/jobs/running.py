"""Run a job: train its populations to the end, with checkpoints, and write the workdir."""

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

from experiments.app import compiled, errors, settings, stops
from experiments.app.errors import UserError
from experiments.app.output import Output
from experiments.configs.loading import is_data_function
from experiments.jobs.job import Job, find_devices, too_large, too_many
from experiments.workdir import events, files, identity, opening, writing
from highway_jax import parallel, population
from highway_jax.files import first_line
from highway_jax.population import Progress, Result


def run(config: ConfigDict, directory: Path, console: Output, prepare: Callable[[], Job]) -> None:
    """Start or resume the work of a config in a workdir.

    Args:
      config: the config, checked.
      directory: the workdir.
      console: where output goes.
      prepare: makes the job; it is called only if the job is needed.

    Raises:
      UserError: if the user has made a mistake.
      errors.Interrupted: if a signal has stopped the work; a checkpoint and the results so far are written.
    """
    settings.pin()
    compiled.keep()
    if opening.is_finished(directory, config):
        given = config.data_dir is not None or is_data_function(config.dataset)
        if parallel.at_first(lambda: given):  # the data may not be those of the results
            about = files.read_provenance(directory)
            identity.check_data(directory, about, prepare().identity.data_md5)
        console.print(f"{directory} holds these results:")
        return
    with jax.default_matmul_precision(config.matmul_precision):
        _do(prepare(), directory, console)


def _do(job: Job, directory: Path, console: Output) -> None:
    config, count = job.config, len(job.train["y"])
    mesh = find_devices(config)
    _check_alike(job.identity, mesh)
    with opening.opened(directory, job.identity, identity.provenance(mesh, config.runs_per_batch)) as done:
        if done:  # by another process, while this one prepared the job
            return
        console.print(
            f"{job.title}: {count} training examples, {_count(config.num_runs, 'run')} "
            f"of each network ({', '.join(job.networks)}), {_count(config.epochs, 'epoch')}, "
            f"on {_devices(mesh)}{', kernels of our own' * ('fused' in job.implementations.values())}"
        )
        with as_user_errors(config):
            results = _train(job, directory, mesh)
        if jax.process_index() == 0:
            writing.finish(directory, results)
    parallel.agree()
    if jax.process_index():
        sys.exit()  # the first process alone prints the results


@contextlib.contextmanager
def as_user_errors(config: ConfigDict) -> Iterator[None]:
    """Turn errors about the workdir and about memory into user errors."""
    try:
        yield
    except population.WorkdirError as error:
        raise UserError(str(error)) from error
    except population.RunTooLarge as error:
        raise too_large(config, error) from error
    except population.MemoryTooSmall as error:
        raise UserError(f"config.{error}") from error
    except MemoryError as error:
        raise too_many(config, first_line(error)) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise UserError(
            f"a device's memory is too small for config.runs_in_memory {config.runs_in_memory} and "
            f"config.runs_per_batch {config.runs_per_batch}; lower one of them (None: as many as memory holds)"
        ) from error


def _check_alike(mine: identity.Identity, mesh: Mesh) -> None:
    """Refuse to run if the processes were given different work, or read different data."""
    said = parallel.agree(*np.frombuffer(bytes.fromhex(mine.fingerprint()), np.int32), *mesh.devices.shape)
    if strange := np.flatnonzero((said != said[0]).any(axis=1)).tolist():
        raise UserError(
            f"process {strange[0]} has another config, mesh, data or implementation than process 0; "
            "all processes must have the same"
        )


def _devices(mesh: Mesh) -> str:
    """The devices in words, such as "8 cpu devices of 2 processes, 4 to a batch"."""
    text = _count(mesh.size, mesh.devices.flat[0].device_kind + " device")
    text += f" of {jax.process_count()} processes" * (jax.process_count() > 1)
    return text + f", {mesh.shape[parallel.DATA]} to a batch" * (mesh.shape[parallel.DATA] > 1)


def _train(job: Job, directory: Path, mesh: Mesh) -> dict[str, Result]:
    """Train every kind of network; returns the results by kind."""
    results: dict[str, Result] = {}
    with stops.stop_requests() as stop, warnings_in_a_line():
        for network in job.networks:
            if results and (stopped := int(parallel.agree(stop.signal).max())):
                raise errors.Interrupted(stopped, f"before {network}; the same command resumes from there")
            results[network] = train_network(job, network, directory, mesh, stop, results)
    return results


def train_network(
    job: Job, network: str, directory: Path, mesh: Mesh, stop: stops.StopRequest, before: writing.Results
) -> Result:
    """Train the runs of one kind of network to the end, from the last checkpoint if there is one, and write tables.

    Args:
      before: the results of the kinds trained before, which the same tables hold.

    Raises:
      errors.Interrupted: if a signal has stopped the training.
    """
    config, first = job.config, jax.process_index() == 0
    place = ""

    def write_tables(result: Result) -> None:
        writing.write_tables(directory, {**before, network: result}, network, bool(config.evaluate_every))

    with population.Bar(label=network, every=config.log_every) as bar:

        def watch(progress: Progress) -> None:
            nonlocal place
            place = progress.place
            bar(progress)
            if first and config.tensorboard and (progress.saved or progress.result.finished):
                events.write(directory, network, progress)
            if first and progress.saved and not progress.result.finished:
                try:
                    write_tables(progress.result)
                except Exception as error:  # they are derived from the checkpoints
                    errors.warn(f"{directory}: tables cannot be written: {first_line(error)}")

        result = population.fit(
            **job.arguments(network),
            workdir=directory / files.CHECKPOINTS / network,
            identity=job.identity.of(network),
            checkpoint_every=config.checkpoint_every,
            tables=False,  # `write_tables` writes those of all networks
            progress=watch,
            stop=lambda: stop.signal,
            mesh=mesh,
            runs_in_memory=config.runs_in_memory,
            runs_per_batch=config.runs_per_batch,
        )
    if first:
        with population.writing(directory, "results"):
            write_tables(result)
            writing.write_params(directory, network, result)
    if result.stopped:
        raise errors.Interrupted(result.stopped, f"after {place} of {network}; the same command resumes from there")
    return result


@contextlib.contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Print the library's warnings in one line each, like the programs' own."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(category, UserWarning):
                errors.warn(compiled.explained(str(message)))
            else:
                usual(message, category, *rest, **options)

        warnings.simplefilter("always", population.WorkdirWarning)
        warnings.showwarning = show
        yield


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
