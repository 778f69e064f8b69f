"""Train single runs: one that a search has found, again and alone, and for longer.

    python -m experiments.train --from_search=runs/digits_depth50 --rank=1
    python -m experiments.train --from_search=runs/digits_depth50 --network=plain --run=37 --config.epochs=60

--from_search=WORKDIR  the search; its config is the run's too
--network=NAME         highway or plain; the only one, where the search has only one
--rank=N               the search's Nth best run of that network, or
--run=N                its run number N
--config.KEY=VALUE     changes a key of the config, e.g. --config.epochs=60
--workdir=DIR          where the results go; by default runs/NAME_NETWORK_runN

The workdir gets what a search's has (see experiments.search), with the run's test accuracy after every epoch, and
its parameters. At the end it is said whether its curve repeats the search's. Stopped, the same command goes on.
"""

import functools
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, results, search, trainer, workdir
from experiments.checks import check
from experiments.cli import UserError
from experiments.configs.figure1 import random_search
from experiments.progress import Output, print_summary
from highway_jax import data, parallel


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("from_search", None, "a search's workdir", flag_values=values)
    flags.DEFINE_string("network", None, "kind of network", flag_values=values)
    flags.DEFINE_integer("run", None, "run number", flag_values=values)
    flags.DEFINE_integer("rank", None, "rank, from 1", flag_values=values)
    flags.DEFINE_string("workdir", None, "where the results go", flag_values=values)
    name, overrides, rest = cli.split_config_flags(argv)
    cli.parse_flags(rest, values)
    if values.from_search is None or name is not None:
        raise UserError("--from_search is missing; it must be a search's workdir, whose config is the run's too")
    found = results.load(values.from_search)
    network, run = choose(found, values.network, values.run, values.rank)
    config = config_of_run(found.config, network, run)
    cli.override(config, overrides)
    space = check(config)
    directory = Path(values.workdir or f"runs/{Path(values.from_search).resolve().name}_{network}_run{run}")
    console = Output()
    if workdir.finished(directory, config):
        console.print(f"{directory} holds this run's results:")
    else:
        dataset = data.load(config.dataset, config.data_dir)
        what = functools.partial(search.recipe, config, dataset)
        title = f"{dataset.name}, depth {config.depth}, {network} run {run}"
        trainer.do(trainer.Job(config, space, what, dataset, title, keep_params=True), directory, console)
    summary = workdir.finished(directory, config)
    assert summary
    print_summary(summary, console)
    console.print(compare(found.networks[network].curve(run), results.load(directory).networks[network].curve(run)))
    console.print(f"parameters after the last epoch: {directory / 'params' / network / f'run{run}'}")


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


def config_of_run(search_config: ConfigDict, network: str, run: int) -> ConfigDict:
    """The config that trains one run of a search by itself, evaluated after every epoch."""
    config = random_search("digits", 2, 1, 1)
    with config.ignore_type():  # JSON has no tuples
        for key, value in cli.leaves(search_config).items():
            if key not in workdir.ANYWHERE or key == "data_dir":
                config.update_from_flattened_dict({key: value})
    config.networks, config.first_run, config.num_runs, config.evaluate_every = (network,), run, 1, 1
    return config


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
