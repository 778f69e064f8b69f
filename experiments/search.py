"""Random search over hyperparameters, all runs at once (the paper's Section 3.1 and Figure 1).

    python -m experiments.search --config=digits_depth50
    python -m experiments.search --config=mnist_depth100 --workdir=DIR --config.epochs=5

--config=NAME          a config of experiments/configs, or a path to a Python file with get_config()
--config.KEY=VALUE     changes one of its keys, e.g. --config.search.learning_rate="(0.01, 0.1)"
--workdir=DIR          where the results go; by default runs/NAME

The workdir gets config.json, runs.csv, curves.csv, summary.json, provenance.json, figure1.png and
best/NETWORK, the parameters of each network's best run. On a finished workdir the results are printed again.
"""

import functools
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import cli, workdir
from experiments.checks import check
from experiments.cli import UserError
from experiments.progress import Output, Report, print_summary, progress
from experiments.workdir import Outcome
from highway_jax import MLP, checkpoint, data, parallel, plotting, search, training


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where the results go", flag_values=values)
    name, config, rest = cli.parse_config(argv)
    cli.parse_flags(rest, values)
    space = check(config)
    directory = Path(values.workdir or f"runs/{name}")
    console = Output()
    if workdir.finished(directory, config):
        console.print(f"{directory} holds this search's results:")
    else:
        dataset = data.load(config.dataset, config.data_dir)
        if config.batch_size > len(dataset.train.labels):
            raise UserError(
                f"config.batch_size is {config.batch_size}; it must be at most {len(dataset.train.labels)}, "
                f"{dataset.name}'s training images"
            )
        jax.config.update("jax_default_matmul_precision", config.matmul_precision)
        mesh = find_devices(config.num_runs)
        workdir.prepare(directory, config)
        try:
            run_search(config, space, dataset, directory, mesh, console)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"a device's memory is too small for config.runs_per_batch {config.runs_per_batch} and "
                f"config.num_runs {config.num_runs}; lower one of them"
            ) from error
    summary = workdir.finished(directory, config)
    assert summary
    print_summary(summary, console)
    console.print(f"Figure 1: {directory / 'figure1.png'}")


def find_devices(num_runs: int) -> Mesh:
    """The devices to search on: all of them, or as many as there are runs."""
    try:
        return parallel.runs_mesh(jax.devices()[:num_runs])
    except RuntimeError as error:  # such as JAX_PLATFORMS naming what is not there
        raise UserError(f"JAX finds no device: {data.first_line(error)}") from error


def recipe(config: ConfigDict, network: str, dataset: data.Dataset) -> training.Recipe:
    """What a config's runs of one kind of network train."""

    def build(hp: training.Hyperparameters) -> MLP:
        return MLP(
            depth=config.depth,
            width=config.width[network],
            num_classes=dataset.num_classes,
            block=network,
            activation=hp.activation,
            transform_bias=hp.transform_bias,
        )

    return training.Recipe(
        network=build,
        preprocess=functools.partial(data.rescale, max_value=dataset.max_value),
    )


def run_search(
    config: ConfigDict,
    space: search.SearchSpace,
    dataset: data.Dataset,
    directory: Path,
    mesh: Mesh,
    console: Output,
) -> None:
    """Search with every kind of network and write the workdir's files."""
    plural = "s" * (config.epochs > 1)
    console.print(
        f"{dataset.name}: {len(dataset.train.labels)} training images, depth {config.depth}, "
        f"{config.num_runs} runs of each network ({', '.join(config.networks)}), {config.epochs} epoch{plural}, "
        f"on {mesh.size} {mesh.devices.flat[0].device_kind} device{'s' * (mesh.size > 1)}"
    )
    outcomes: dict[str, Outcome] = {}
    with progress(config.networks, config.epochs, console) as report:
        for network in config.networks:
            outcomes[network] = search_network(config, space, dataset, network, mesh, report)
            workdir.write_tables(directory, outcomes)
            checkpoint.save_params(directory / "best" / network, outcomes[network].best_params)
    title = f"{dataset.name}, depth {config.depth}, {config.num_runs} runs of each network"
    figure = plotting.figure1({network: o.curves for network, o in outcomes.items()}, title)
    figure.savefig(directory / "figure1.png", dpi=150)
    workdir.write_json(
        directory / "provenance.json",
        {**workdir.provenance(), "seconds": {network: round(o.seconds, 1) for network, o in outcomes.items()}},
    )
    # Last: it marks the workdir as finished.
    workdir.write_json(directory / "summary.json", {network: workdir.summarize(o) for network, o in outcomes.items()})


def search_network(
    config: ConfigDict, space: search.SearchSpace, dataset: data.Dataset, network: str, mesh: Mesh, report: Report
) -> Outcome:
    """Train a population of one kind of network."""
    started = time.monotonic()
    what = recipe(config, network, dataset)
    train = parallel.replicate(mesh, dataset.train)
    population = search.init_population(what, space, config.seed, config.num_runs, dataset.train.images, mesh)
    runs_per_batch = config.runs_per_batch or search.choose_runs_per_batch(
        what, population, dataset.train, config.batch_size, mesh
    )
    hyperparameters = _host(population.hyperparameters, config.num_runs)
    epoch = search.population_epoch(what, config.batch_size, mesh, runs_per_batch)

    curves = np.empty((config.num_runs, config.epochs), np.float32)
    # The best run and its parameters so far, lowest index first among equals, as in the ranking.
    best, best_params = (math.inf, 0), None
    for number in range(config.epochs):
        population, losses = epoch(population, train, search.epoch_key(config.seed, number))
        curves[:, number] = losses = _host(losses, config.num_runs)
        leader = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        loss = float(losses[leader]) if np.isfinite(losses[leader]) else math.inf
        if best_params is None or (loss, leader) < best:
            # It may diverge later, so its parameters are kept now.
            best, best_params = (loss, leader), search.take_run(population.params, leader)
        report(network, number + 1, best[0], int((~np.isfinite(losses)).sum()))

    test = parallel.map_runs(lambda run, split: training.evaluate(what, run, split), mesh, runs_per_batch)
    metrics = jax.jit(test)(population, parallel.replicate(mesh, dataset.test))
    accuracy = _host(metrics["accuracy"], config.num_runs)
    return Outcome(hyperparameters, curves, accuracy, best_params, time.monotonic() - started)


def _host(tree: Any, num_runs: int) -> Any:
    """Copy to the host, without the runs that only fill up the devices."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:num_runs], tree)


if __name__ == "__main__":
    parallel.split_cpu()
    cli.run(main, __doc__)
