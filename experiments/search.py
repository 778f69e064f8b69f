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

import functools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import cli, cluster, guided, trainer, workdir
from experiments.checks import check_search
from experiments.cli import UserError
from experiments.progress import Output, print_summary
from experiments.workdir import Outcome
from highway_jax import MLP, blocks, data, fused, parallel, plotting, search, training


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    cli.define_path("workdir", None, "where the results go", values)
    name, overrides, rest = cli.split_config_flags(argv)
    cluster.define_flags(values)
    cli.parse_flags(rest, values)
    cluster.join(values)
    label, config = cli.load_config(name)
    cli.override(config, overrides)
    if "stages" in config:
        raise UserError(f"--config is {name!r}, which is no search's; use it with: python -m experiments.train")
    space, halving = check_search(config)
    directory = Path(values.workdir or f"runs/{label}")
    is_guided = config.sampler == "tpe"
    console = Output()

    def prepare() -> trainer.Job:
        dataset = data.load(config.dataset, config.data_dir)
        implementations = choose_implementations(config, config.networks, workdir.earlier_implementations(directory))
        return trainer.Job(
            config=config,
            networks=config.networks,
            sample=guided.sampler(config, space, directory) if is_guided else sampler(config, space),
            recipe=lambda network: recipe(config, dataset, network, implementations[network]),
            implementations=implementations,
            train=dataset.train,
            evaluate={"test_accuracy": dataset.test},
            title=f"{dataset.name}, depth {config.depth}",
            draw=lambda outcomes: {"figure1.png": draw(config, dataset, outcomes)},
            halving=halving,
        )

    summary = trainer.summary_of(config, directory, console, prepare)
    print_summary(summary, console)
    console.print(f"Figure 1: {directory / 'figure1.png'}")
    if is_guided:
        guided.store_results(directory, space)
        console.print(f"study: optuna-dashboard {shlex.quote(guided.study_url(directory))}")


def sampler(config: ConfigDict, space: search.SearchSpace) -> trainer.Sampler:
    """Random search: every run's hyperparameters follow from the seed and its number."""
    return lambda network, first_run, count, outcome: search.sample_population(space, config.seed, count, first_run)


def choose_implementations(
    config: ConfigDict, networks: Sequence[str], earlier: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What computes the layers of each kind of network here, in all processes alike, which must all call it.

    Args:
      config: the config, checked.
      networks: the kinds.
      earlier: what computed them in work that goes on or is repeated, by which "auto" goes; by default there is none.

    Raises:
      UserError: if the config asks for the fused kernel, and there is none.
    """
    wanted = dict.fromkeys(networks, "xla")
    if config.implementation != "xla" and jax.default_backend() == "cpu":
        for network in filter(lambda network: fused.supports(blocks.named(network)), networks):
            if config.implementation == "fused":
                wanted[network] = "fused"
            elif earlier is not None:
                wanted[network] = earlier.get(network, "xla")
            elif config.width[network] <= fused.WIDEST:
                wanted[network] = "fused"
    if "fused" in wanted.values():
        try:
            fused.load()
        except fused.Unavailable as reason:
            if config.implementation == "fused":
                raise UserError(f"config.implementation is 'fused', but {reason}; 'xla' needs none") from reason
            if not isinstance(reason, fused.NoCompiler):
                cli.warn(f"XLA alone computes the layers, which takes up to twice as long: {reason}")
            wanted = dict.fromkeys(networks, "xla")
    everywhere = parallel.agree(*(wanted[network] == "fused" for network in networks)).min(axis=0).tolist()
    return {network: "fused" if agreed else "xla" for network, agreed in zip(networks, everywhere, strict=True)}


def recipe(config: ConfigDict, dataset: data.Dataset, network: str, implementation: str = "xla") -> training.Recipe:
    """What a config's runs of one kind of network train."""

    def build(hp: training.Hyperparameters) -> MLP:
        return MLP(
            depth=config.depth,
            width=config.width[network],
            num_classes=dataset.num_classes,
            block=network,
            activation=hp.activation,
            transform_bias=hp.transform_bias,
            remat=config.remat,
            implementation=implementation,
        )

    return training.Recipe(
        network=build,
        preprocess=functools.partial(data.rescale, max_value=dataset.max_value),
    )


def draw(config: ConfigDict, dataset: data.Dataset, outcomes: Mapping[str, Outcome]) -> Figure:
    """Figure 1 of what a search found."""
    title = f"{dataset.name}, depth {config.depth}, {config.num_runs} runs of each network"
    return plotting.figure1({network: outcome.train_loss for network, outcome in outcomes.items()}, title)


if __name__ == "__main__":
    parallel.split_cpu()
    cli.run(main, __doc__)
