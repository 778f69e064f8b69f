"""Train convolutional networks, or train one run of a search again, by itself, maybe for longer.

    python -m experiments.train --config=digits_conv
    python -m experiments.train --config=cifar10_highway_b --config.num_runs=5
    python -m experiments.train --config=digits_fitnet --config.teacher=runs/digits_fitnet_teacher
    python -m experiments.train --from_search=runs/digits_depth50 --network=highway --rank=1
    python -m experiments.train --from_search=runs/digits_depth50 --network=plain --run=37 --config.epochs=60

--config=NAME          a config of experiments/configs, or a path to a Python file with get_config(), or
--from_search=WORKDIR  a search, whose config the run uses; add --config=FILE if a function in that file gives the data
--network=NAME         highway, plain or another network of the search; not needed if the search has only one
--rank=N               the search's Nth best run of that network, or
--run=N                its run number N
--config.KEY=VALUE     changes a key of the config
--workdir=DIR          where the results go; by default runs/NAME, or runs/NAME_NETWORK_runN
--coordinator=HOST:PORT --num_processes=N --process_id=I
                       this is process I of N that share the work, and process 0 runs on HOST; not needed on
                       clusters that JAX detects (docs/scaling.md)

The workdir gets the same files as a search's (see experiments.search), the test accuracy of every run after every
epoch, and the parameters of every run. After training a search's run again, the program says whether its curve repeats
the search's. The same command resumes a training that was stopped.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from experiments.app import cluster, command_line, entry, settings
from experiments.app.errors import UserError
from experiments.app.output import Output
from experiments.configs import loading
from experiments.configs.validation import check
from experiments.jobs import replaying, running
from experiments.jobs.job import Job
from experiments.jobs.making import job_of
from experiments.pages.words import best_mean_std
from experiments.workdir import contents, opening, reading
from experiments.workdir.contents import Workdir
from experiments.workdir.identity import check_data
from experiments.workdir.summary import print_summary
from highway_jax import parallel


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    command_line.define_path("from_search", None, "a search's workdir", values)
    flags.DEFINE_string("network", None, "kind of network", flag_values=values)
    flags.DEFINE_integer("run", None, "run number", flag_values=values)
    flags.DEFINE_integer("rank", None, "rank, from 1", flag_values=values)
    command_line.define_path("workdir", None, "where the results go", values)
    name, overrides, rest = command_line.split_config_flags(argv)
    cluster.define_flags(values)
    command_line.parse_flags(rest, values)
    cluster.join(values)
    if values.from_search is None:
        train_convnet(values, name, overrides)
    else:
        train_again(values, name, overrides)


def train_convnet(values: flags.FlagValues, name: str | None, overrides: Mapping[str, str]) -> None:
    """Train the convolutional network that a config describes, from `num_runs` initializations."""
    if name is None:
        raise UserError(
            f"--config and --from_search are both missing; one must be given, such as --config=digits_conv; "
            f"the configs are {loading.names('stages')}"
        )
    for flag in "network", "run", "rank":
        if values[flag].value is not None:
            raise UserError(
                f"--{flag} is {values[flag].value!r}, which needs --from_search; see --config.block and so on"
            )
    label, config, function = loading.load(name, {}, "stages")
    block = config.get("block")
    loading.override(config, overrides)
    check(config)
    changes = f"_{config.block}" * (config.block != block) + "_taught" * (config.teacher is not None)
    directory = Path(values.workdir or f"runs/{label}{changes}")
    console = Output()

    def prepare() -> Job:
        return job_of(config, function, directory, earlier=opening.earlier_implementations(directory))

    running.run(config, directory, console, prepare)
    found = reading.load(directory)
    accuracy = found.results[config.block].last("test_accuracy")
    console.print(f"test accuracy after epoch {config.epochs}: {best_mean_std(accuracy)} %")
    if len(accuracy) > 1:
        console.print(f"that is: best (mean ± standard deviation) of {len(accuracy)} runs")
    say_where(found, directory / "params" / config.block, console)


def train_again(values: flags.FlagValues, name: str | None, overrides: Mapping[str, str]) -> None:
    """Train one of a search's runs again, by itself."""
    function = None if name is None else loading.load(name, {}).function
    if name is not None and function is None:
        raise UserError("--config and --from_search are both given; a run of a search uses the search's config")
    found = reading.load(values.from_search)
    if found.program != "search":
        raise UserError(f"--from_search is {values.from_search!r}, which must be a search's workdir")
    network, run = contents.choose(found, values.network, values.run, values.rank)
    settings.pin()
    config = replaying.config_of_run(found, network, run)
    loading.override(config, overrides)
    check(config)
    directory = Path(values.workdir or f"runs/{Path(values.from_search).resolve().name}_{network}_run{run}")
    console = Output()

    def prepare() -> Job:
        earlier = opening.earlier_implementations(directory)
        if earlier is None:
            earlier = found.provenance.get("implementations", {})  # the same ones repeat the run exactly
        job = job_of(config, function, directory, earlier=earlier)
        if config.dataset == found.config.dataset:
            check_data(found.directory, found.provenance, job.identity.data_md5)
        return dataclasses.replace(job, title=f"{job.title}, {network} run {run}", keep_params=True)

    running.run(config, directory, console, prepare)
    now = reading.load(directory)
    print_summary(now.results, console)
    console.print(replaying.compare(found.results[network].curve(run), now.results[network].curve(run)))
    say_where(now, directory / "params" / network / f"run{run}", console)


def say_where(found: Workdir, params: Path, console: Output) -> None:
    """Draw the learning curves, and print where they and the parameters are."""
    from experiments.pages import figures  # imported late: it takes half a second

    figure = figures.add(found, "curves.png", figures.learning_curves)
    console.print(f"figure: {figure}, parameters: {params}")


if __name__ == "__main__":
    parallel.split_cpu()
    entry.run(main, __doc__)
