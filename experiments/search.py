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
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from experiments import cli, workdir
from experiments.cli import UserError
from experiments.configs.figure1 import random_search
from experiments.progress import Report, print_summary, progress
from experiments.workdir import Outcome
from highway_jax import MLP, checkpoint, data, parallel, plotting, search, training
from highway_jax.models import BLOCKS

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where the results go", flag_values=values)
    name, config, rest = cli.parse_config(argv)
    cli.parse_flags(rest, values)
    space = check(config)
    dataset = data.load(config.dataset, config.data_dir)
    examples = len(dataset.train.labels)
    if config.batch_size > examples:
        raise UserError(
            f"config.batch_size is {config.batch_size}; it must be at most {examples}, {dataset.name}'s training images"
        )
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    directory = workdir.prepare(values.workdir or f"runs/{name}", config)
    console = Console()
    if (directory / "summary.json").exists():
        console.print(f"{directory} holds this search's results:")
    else:
        run_search(config, space, dataset, directory, console)
    print_summary(json.loads((directory / "summary.json").read_text()), console)
    console.print(f"Figure 1: {directory / 'figure1.png'}", soft_wrap=True)


def check(config: ConfigDict) -> search.SearchSpace:
    """Refuse a config that cannot be searched, naming the key; returns the space to search."""
    if missing := set(cli.leaf_keys(random_search("digits", 2, 1, 1))) - set(cli.leaf_keys(config)):
        raise UserError(f"the config has no key {', '.join(sorted(missing))}; experiments/configs/figure1.py has all")
    least = {"num_runs": 1, "epochs": 1, "batch_size": 1, "depth": 2, "seed": 0, "runs_per_batch": 1}
    for key, value in {**{k: config[k] for k in least}, **{f"width.{k}": v for k, v in config.width.items()}}.items():
        if value is None and key == "runs_per_batch":
            continue
        if not isinstance(value, int) or value < least.get(key, 1):
            raise UserError(f"config.{key} is {value!r}; it must be an integer of at least {least.get(key, 1)}")
    if config.seed >= 2**32:
        raise UserError(f"config.seed is {config.seed}; it must be below 2**32")
    networks = tuple(config.networks)
    if not networks or not set(networks) <= set(BLOCKS) or len(set(networks)) < len(networks):
        raise UserError(f"config.networks is {networks}; it must be one or more of {', '.join(BLOCKS)}, each once")
    if config.matmul_precision not in PRECISIONS:
        raise UserError(
            f"config.matmul_precision is {config.matmul_precision!r}; it must be one of {', '.join(PRECISIONS)}"
        )
    if config.data_dir is not None and not Path(config.data_dir).expanduser().is_dir():
        raise UserError(f"config.data_dir is {config.data_dir!r}; it must be an existing directory")
    ranges = {key: tuple(value) for key, value in config.search.items()}
    for key, ends in ranges.items():
        if key != "activation" and len(ends) == 1:  # a single number fixes a hyperparameter
            ranges[key] = ends * 2
    try:
        return search.SearchSpace(**ranges)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.search.{error}") from error


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
    config: ConfigDict, space: search.SearchSpace, dataset: data.Dataset, directory: Path, console: Console
) -> None:
    """Search with every kind of network and write the workdir's files."""
    mesh = parallel.runs_mesh()
    console.print(
        f"{dataset.name}: {len(dataset.train.labels)} training images, depth {config.depth}, "
        f"{config.num_runs} runs of each network ({', '.join(config.networks)}), {config.epochs} epochs, "
        f"on {mesh.size} {mesh.devices.flat[0].device_kind} device{'s' * (mesh.size > 1)}",
        soft_wrap=True,
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
    best_loss, best_params = math.inf, None
    for number in range(config.epochs):
        population, losses = epoch(population, train, search.epoch_key(config.seed, number))
        curves[:, number] = losses = _host(losses, config.num_runs)
        # The best run so far may diverge later, so its parameters are kept now.
        leader = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        if best_params is None or losses[leader] < best_loss:
            best_loss, best_params = float(losses[leader]), search.take_run(population.params, leader)
        report(network, number + 1, best_loss, int((~np.isfinite(losses)).sum()))

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
