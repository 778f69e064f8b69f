"""Train single runs: convolutional networks, or one that a search has found, again, alone and for longer.

    python -m experiments.train --config=digits_conv
    python -m experiments.train --config=cifar10_highway_b --config.num_runs=5
    python -m experiments.train --config=digits_fitnet --config.teacher=runs/digits_fitnet_teacher
    python -m experiments.train --from_search=runs/digits_depth50 --network=highway --rank=1
    python -m experiments.train --from_search=runs/digits_depth50 --network=plain --run=37 --config.epochs=60

--config=NAME          a config of experiments/configs, or a path to a Python file with get_config(), or
--from_search=WORKDIR  a search, whose config is the run's too; with --config=FILE if that file's function has the data
--network=NAME         highway, plain or another of the search's; the only one, where the search has only one
--rank=N               the search's Nth best run of that network, or
--run=N                its run number N
--config.KEY=VALUE     changes a key of the config
--workdir=DIR          where the results go; by default runs/NAME, or runs/NAME_NETWORK_runN
--coordinator=HOST:PORT --num_processes=N --process_id=I
                       this is process I of N that work together, and HOST is process 0's; not needed on clusters
                       that JAX detects (docs/scaling.md)

The workdir gets what a search's has (see experiments.search), with every run's test accuracy after every epoch, and
its parameters. Of a search's run it is said at the end whether its curve repeats the search's. Stopped, the same
command goes on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, cluster, datasets, results, settings, trainer, workdir
from experiments.checks import Space, check_search, check_training
from experiments.cli import UserError
from experiments.jobs import Job, choose_implementations, draw_curves, search_job, training_job
from experiments.progress import Output, print_summary
from highway_jax import parallel, population


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    cli.define_path("from_search", None, "a search's workdir", values)
    flags.DEFINE_string("network", None, "kind of network", flag_values=values)
    flags.DEFINE_integer("run", None, "run number", flag_values=values)
    flags.DEFINE_integer("rank", None, "rank, from 1", flag_values=values)
    cli.define_path("workdir", None, "where the results go", values)
    name, overrides, rest = cli.split_config_flags(argv)
    cluster.define_flags(values)
    cli.parse_flags(rest, values)
    cluster.join(values)
    if values.from_search is not None:
        function = None if name is None else cli.load_config(name)[2]
        if name is not None and function is None:
            raise UserError("--config and --from_search are both given; a search's run has the search's config")
        train_again(values, overrides, function)
        return
    if name is None:
        raise UserError(
            f"--config and --from_search are missing; one of them must be given, such as --config=digits_conv; "
            f"the configs are {', '.join(cli.known_configs())}"
        )
    for flag in "network", "run", "rank":
        if values[flag].value is not None:
            raise UserError(
                f"--{flag} is {values[flag].value!r}, which is for --from_search; see --config.block and so on"
            )
    label, config, function = cli.load_config(name)
    if "search" in config:
        raise UserError(f"--config is {name!r}, which is a search's; use it with: python -m experiments.search")
    block = config.block
    cli.override(config, overrides)
    cli.split_data_path(config)
    changes = f"_{config.block}" * (config.block != block) + "_taught" * (config.teacher is not None)
    train_convnet(config, Path(values.workdir or f"runs/{label}{changes}"), function)


def train_convnet(config: ConfigDict, directory: Path, function: cli.DataFunction | None = None) -> None:
    """Train the convolutional network that a config describes, from `num_runs` initializations."""
    space = check_training(config)
    console = Output()

    def prepare() -> Job:
        return training_job(config, space, datasets.load(config.dataset, config.data_dir, function))

    trainer.summary_of(config, directory, console, prepare)
    accuracy = results.load(directory).networks[config.block].test_accuracy
    console.print(f"test accuracy after epoch {config.epochs}: {results.best_mean_std(accuracy)} %")
    if len(accuracy) > 1:
        console.print(f"that is: best (mean ± standard deviation) of {len(accuracy)} runs")
    console.print(f"figure: {directory / 'curves.png'}, parameters: {directory / 'params' / config.block}")


def train_again(values: flags.FlagValues, overrides: Mapping[str, str], function: cli.DataFunction | None) -> None:
    """Train one of a search's runs again, by itself."""
    found = results.load(values.from_search)
    if "search" not in found.config:
        raise UserError(f"--from_search is {values.from_search!r}, which must be a search's workdir")
    network, run = choose(found, values.network, values.run, values.rank)
    settings.pin()
    config = config_of_run(found, network, run)
    with results.naming_config(found):
        space, _ = check_search(config)
    check_draw(found, network, run, drawn(space, config.seed, run))
    cli.override(config, overrides)
    space, halving = check_search(config)
    directory = Path(values.workdir or f"runs/{Path(values.from_search).resolve().name}_{network}_run{run}")
    console = Output()

    def prepare() -> Job:
        dataset = datasets.load(config.dataset, config.data_dir, function)
        earlier = workdir.earlier_implementations(directory)
        if earlier is None:
            earlier = found.provenance.get("implementations", {})  # to repeat it exactly
        implementations = choose_implementations(config, [network], earlier)
        title = f"{dataset.name}, depth {config.depth}, {network} run {run}"
        draw = draw_curves(title)
        job = search_job(
            config, space, halving, dataset, implementations, directory, title=title, draw=draw, keep_params=True
        )
        if config.dataset == found.config.dataset:
            workdir.check_data(found.directory, found.provenance, job.identity.data_md5)
        return job

    summary = trainer.summary_of(config, directory, console, prepare)
    print_summary(summary, console)
    console.print(compare(found.networks[network].curve(run), results.load(directory).networks[network].curve(run)))
    console.print(f"figure: {directory / 'curves.png'}, parameters: {directory / 'params' / network / f'run{run}'}")


def choose(found: results.Result, network: str | None, run: int | None, rank: int | None) -> tuple[str, int]:
    """The kind of network and the run that are meant.

    Raises:
      UserError: if that is not clear, or not in the search.
    """
    networks = list(found.networks)
    if network is None and len(networks) == 1:
        (network,) = networks
    if network not in networks:
        raise UserError(f"--network is {network!r}; it must be one of {', '.join(networks)}")
    runs = found.networks[network]
    if (run is None) == (rank is None):
        raise UserError("one of --run=N and --rank=N must be given, and not both")
    if run is None:
        if rank not in runs.rank:
            raise UserError(f"--rank is {rank}; it must be 1 to {len(runs.rank)}")
        return network, int(runs.run[runs.rank == rank][0])
    if run not in runs.run:
        raise UserError(f"--run is {run}; it must be {runs.run[0]} to {runs.run[-1]}")
    return network, run


def config_of_run(found: results.Result, network: str, run: int) -> ConfigDict:
    """The config that trains one run of a search by itself, evaluated after every epoch."""
    config = results.as_program_has_it(found.config)
    config.networks, config.first_run, config.num_runs, config.evaluate_every = (network,), run, 1, 1
    config.search.halving.every = None
    if config.sampler != "random":  # what such a run has does not follow from its number
        config.sampler = "random"
        runs = found.networks[network]
        for name, values in runs.hyperparameters.items():
            value = values[run - runs.run[0]].item()
            if name == "activation" or np.isfinite(value):  # a plain network has no transform bias
                config.search[name] = (value,)
    return config


def drawn(space: Space, seed: int, run: int) -> dict[str, Any]:
    """The hyperparameters that a search with such a space and seed gives a run."""
    given = population.Space(space)
    columns = given.draw(population.keys(seed)[0], np.array([run]))
    return {name: values[0] for name, values in given.readable(columns, 1).items()}


def check_draw(found: results.Result, network: str, run: int, hyperparameters: Mapping[str, Any]) -> None:
    """Refuse to repeat a run whose hyperparameters are not those in the search's table.

    Raises:
      UserError: naming the first that differs.
    """
    runs = found.networks[network]
    for name, values in runs.hyperparameters.items():
        there, here = values[run - runs.run[0]], hyperparameters[name]
        if name == "activation":
            same = there == here
        else:  # compilers and devices differ in the last digit; a network without gates has no transform bias
            same = np.isnan(there) or np.isclose(there, here, rtol=1e-5, atol=1e-6 * np.abs(values).max())
        if not same:
            raise UserError(
                f"{found.directory / 'runs.csv'}: {name} of {network} run {run} is {there!s}, but the workdir's config "
                f"gives {here!s}; the workdir was changed, or made by another version"
            )


def compare(before: np.ndarray, now: np.ndarray) -> str:
    """Say whether a training curve repeats an earlier one, over the epochs that they share."""
    epochs = min(len(before), len(now))
    before, now = before[:epochs], now[:epochs]
    if np.array_equal(before, now, equal_nan=True):
        return f"the curve repeats the search's exactly ({epochs} epochs)"
    finite = np.isfinite(before) & np.isfinite(now)
    difference = np.abs(now - before)[finite] / before[finite]
    return (
        f"the curve differs from the search's by up to {difference.max(initial=0):.1e} of its value ({epochs} epochs)"
    )


if __name__ == "__main__":
    parallel.split_cpu()
    cli.run(main, __doc__)
