"""Random search over hyperparameters, all runs at once (the paper's Section 3.1 and Figure 1).

    python -m experiments.search --config=digits_depth50
    python -m experiments.search --config=digits_depth50 --config.sampler=tpe --config.runs_in_memory=20
    python -m experiments.search --config=mnist_depth100 --workdir=DIR --config.epochs=5

--config=NAME          a config of experiments/configs, or a path to a Python file with get_config()
--config.KEY=VALUE     changes one of its keys, e.g. --config.search.learning_rate="(0.01, 0.1)"
--workdir=DIR          where the results go; by default runs/NAME
--coordinator=HOST:PORT --num_processes=N --process_id=I
                       this is process I of N that share the work, and process 0 runs on HOST; not needed on
                       clusters that JAX detects (docs/scaling.md)

The search writes config.json, runs.csv, curves.csv, summary.json, provenance.json, figure1.png and best/NETWORK, the
parameters of each network's best run, to the workdir. Given a finished workdir, it prints the results again.
"""

import shlex
from pathlib import Path

import jax
from absl import flags

from experiments.app import cluster, command_line, entry
from experiments.app.output import Output
from experiments.configs import loading
from experiments.configs.validation import check
from experiments.jobs import guiding, running
from experiments.jobs.job import Job
from experiments.jobs.making import job_of
from experiments.workdir import opening, reading
from experiments.workdir.summary import print_summary
from highway_jax import parallel


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    command_line.define_path("workdir", None, "where the results go", values)
    name, overrides, rest = command_line.split_config_flags(argv)
    cluster.define_flags(values)
    command_line.parse_flags(rest, values)
    cluster.join(values)
    label, config, function = loading.load(name, overrides, "search")
    space, _ = check(config)
    directory = Path(values.workdir or f"runs/{label}")
    console = Output()

    def prepare() -> Job:
        return job_of(config, function, directory, earlier=opening.earlier_implementations(directory))

    running.run(config, directory, console, prepare)
    found = reading.load(directory)
    print_summary(found.results, console)
    from experiments.pages import figures  # imported late: it takes half a second

    console.print(f"Figure 1: {figures.add(found, 'figure1.png', figures.figure1)}")
    console.print(shlex.join(["report:", "python", "-m", "experiments.report", str(directory)]))
    if config.sampler == "tpe":
        if jax.process_index() == 0:
            guiding.store_results(directory, space, found.results)
        console.print(f"study: optuna-dashboard {shlex.quote(guiding.study_url(directory))}")


if __name__ == "__main__":
    parallel.split_cpu()
    entry.run(main, __doc__)
