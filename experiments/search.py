"""Random search over hyperparameters, all runs at once (the paper's Section 3.1 and Figure 1).

    python -m experiments.search --config=digits_depth50
    python -m experiments.search --config=digits_depth50 --config.sampler=tpe --config.runs_in_memory=20
    python -m experiments.search --config=mnist_depth100 --workdir=DIR --config.epochs=5

--config=NAME          a config of experiments/configs, or a path to a Python file with get_config()
--config.KEY=VALUE     changes one of its keys, e.g. --config.search.learning_rate="(0.01, 0.1)"
--workdir=DIR          where the results go; by default runs/NAME
--coordinator=HOST:PORT --num_processes=N --process_id=I
                       this is process I of N that work together, and HOST is process 0's; not needed on clusters
                       that JAX detects (docs/scaling.md)

The workdir gets config.json, runs.csv, curves.csv, summary.json, provenance.json, figure1.png and
best/NETWORK, the parameters of each network's best run. On a finished workdir the results are printed again.
"""

import shlex
from pathlib import Path

from absl import flags

from experiments import cli, cluster, datasets, guided, trainer, workdir
from experiments.checks import check_search
from experiments.cli import UserError
from experiments.jobs import Job, choose_implementations, search_job
from experiments.progress import Output, print_summary
from highway_jax import parallel


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    cli.define_path("workdir", None, "where the results go", values)
    name, overrides, rest = cli.split_config_flags(argv)
    cluster.define_flags(values)
    cli.parse_flags(rest, values)
    cluster.join(values)
    label, config, function = cli.load_config(name)
    cli.override(config, overrides)
    cli.split_data_path(config)
    if "stages" in config:
        raise UserError(f"--config is {name!r}, which is no search's; use it with: python -m experiments.train")
    space, halving = check_search(config)
    directory = Path(values.workdir or f"runs/{label}")
    console = Output()

    def prepare() -> Job:
        dataset = datasets.load(config.dataset, config.data_dir, function)
        implementations = choose_implementations(config, config.networks, workdir.earlier_implementations(directory))
        return search_job(config, space, halving, dataset, implementations, directory)

    summary = trainer.summary_of(config, directory, console, prepare)
    print_summary(summary, console)
    console.print(f"Figure 1: {directory / 'figure1.png'}")
    if config.sampler == "tpe":
        guided.store_results(directory, space)
        console.print(f"study: optuna-dashboard {shlex.quote(guided.study_url(directory))}")


if __name__ == "__main__":
    parallel.split_cpu()
    cli.run(main, __doc__)
