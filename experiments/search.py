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
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments import cli, trainer, workdir
from experiments.checks import check
from experiments.progress import Output, print_summary
from highway_jax import MLP, data, parallel, training


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where the results go", flag_values=values)
    name, overrides, rest = cli.split_config_flags(argv)
    cli.parse_flags(rest, values)
    label, config = cli.load_config(name)
    cli.override(config, overrides)
    space = check(config)
    directory = Path(values.workdir or f"runs/{label}")
    console = Output()
    if workdir.finished(directory, config):
        console.print(f"{directory} holds this search's results:")
    else:
        dataset = data.load(config.dataset, config.data_dir)
        what = functools.partial(recipe, config, dataset)
        title = f"{dataset.name}, depth {config.depth}"
        trainer.do(trainer.Job(config, space, what, dataset, title), directory, console)
    summary = workdir.finished(directory, config)
    assert summary
    print_summary(summary, console)
    console.print(f"Figure 1: {directory / 'figure1.png'}")


def recipe(config: ConfigDict, dataset: data.Dataset, network: str) -> training.Recipe:
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


if __name__ == "__main__":
    parallel.split_cpu()
    cli.run(main, __doc__)
