"""Train single runs: convolutional networks, or one that a search has found, again, alone and for longer.

    python -m experiments.train --config=digits_conv
    python -m experiments.train --config=cifar10_highway_b --config.num_runs=5
    python -m experiments.train --config=digits_fitnet --config.teacher=runs/digits_fitnet_teacher
    python -m experiments.train --from_search=runs/digits_depth50 --network=highway --rank=1
    python -m experiments.train --from_search=runs/digits_depth50 --network=plain --run=37 --config.epochs=60

--config=NAME          a config of experiments/configs, or a path to a Python file with get_config(), or
--from_search=WORKDIR  a search, whose config is the run's too
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

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import cli, cluster, results, search, settings, teacher, trainer, workdir
from experiments.checks import check_search, check_training
from experiments.cli import UserError
from experiments.progress import Output, print_summary
from experiments.workdir import Outcome
from highway_jax import ConvNet, data, optim, parallel, plotting, training
from highway_jax.activations import ACTIVATIONS
from highway_jax.data import Split
from highway_jax.search import sample_population


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
    if values.from_search is not None and name is not None:
        raise UserError("--config and --from_search are both given; a search's run has the search's config")
    if values.from_search is not None:
        train_again(values, overrides)
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
    label, config = cli.load_config(name)
    if "search" in config:
        raise UserError(f"--config is {name!r}, which is a search's; use it with: python -m experiments.search")
    block = config.block
    cli.override(config, overrides)
    changes = f"_{config.block}" * (config.block != block) + "_taught" * (config.teacher is not None)
    train_convnet(config, Path(values.workdir or f"runs/{label}{changes}"))


def train_convnet(config: ConfigDict, directory: Path) -> None:
    """Train the convolutional network that a config describes, from `num_runs` initializations."""
    space = check_training(config)
    console = Output()

    def prepare() -> trainer.Job:
        dataset = data.load(config.dataset, config.data_dir)
        train, evaluate = hold_out(config, dataset)
        title = f"{dataset.name}, {describe(config, dataset, train)}"
        build: Callable[[str], training.Recipe] = functools.partial(recipe, config, dataset, train)
        inputs = {}
        if config.teacher is not None:
            guide = teacher.load(config, dataset)
            build = teacher.teach(config, dataset, build, guide)
            inputs["teacher"] = guide.params
            title += f", taught by {config.teacher}"
        return trainer.Job(
            config=config,
            networks=(config.block,),
            sample=search.sampler(config, space),
            recipe=build,
            train=train,
            evaluate=evaluate,
            title=title,
            draw=_draw(title),
            keep_params=True,
            inputs=inputs,
        )

    trainer.summary_of(config, directory, console, prepare)
    accuracy = results.load(directory).networks[config.block].test_accuracy
    console.print(f"test accuracy after epoch {config.epochs}: {results.best_mean_std(accuracy)} %")
    if len(accuracy) > 1:
        console.print(f"that is: best (mean ± standard deviation) of {len(accuracy)} runs")
    console.print(f"figure: {directory / 'curves.png'}, parameters: {directory / 'params' / config.block}")


def hold_out(config: ConfigDict, dataset: data.Dataset) -> tuple[Split, dict[str, Split]]:
    """What is trained on, and what is evaluated: the test set, and the last `validation` training examples."""
    count = len(dataset.train.labels) - config.validation
    if count < 1:
        raise UserError(
            f"config.validation is {config.validation}; it must be below {len(dataset.train.labels)}, "
            f"the number of training images"
        )
    train, held_out = (
        jax.tree.map(lambda leaf, part=part: leaf[part], dataset.train) for part in (slice(count), slice(count, None))
    )
    evaluate = {"test_accuracy": dataset.test}
    return train, evaluate | ({"validation_accuracy": held_out} if config.validation else {})


def recipe(config: ConfigDict, dataset: data.Dataset, train: Split, network: str) -> training.Recipe:
    """What a convolutional network's config trains."""

    def build(hp: training.Hyperparameters) -> ConvNet:
        return ConvNet(
            stages=config.stages,
            num_classes=dataset.num_classes,
            block=network,
            activation=hp.activation,
            transform_bias=hp.transform_bias,
            output_std=config.output_std,
        )

    def augment(key: jax.Array, images: Any) -> Any:
        crop, mirror = jax.random.split(key)
        if config.crop_padding:
            images = data.random_crop(crop, images, config.crop_padding)
        return data.random_mirror(mirror, images) if config.mirror else images

    def optimizer(hp: training.Hyperparameters, epoch: Any) -> Any:
        rate = optim.step_decay(hp.learning_rate, hp.decay, epoch, config.boundaries)
        return optim.nesterov(rate, hp.momentum, config.weight_decay)

    if config.preprocessing == "contrast":
        mean = jax.jit(lambda images: data.mean_image(images, data.global_contrast_normalize))(train.images)
        preprocess = lambda images: data.global_contrast_normalize(images) - mean  # noqa: E731
    else:
        preprocess = functools.partial(data.rescale, max_value=dataset.max_value)
    return training.Recipe(build, preprocess, augment, optimizer)


def describe(config: ConfigDict, dataset: data.Dataset, train: Split) -> str:
    """Such as "convolutional highway network of 19 layers, 2,256,838 parameters".

    Raises:
      UserError: if the stages do not fit the images.
    """
    model = ConvNet(config.stages, dataset.num_classes, config.block)
    try:
        variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *train.images.shape[1:]), np.float32))
    except ValueError as error:
        raise UserError(f"config.stages: {error}") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    return f"convolutional {config.block} network of {len(variables['params'])} layers, {count:,} parameters"


def _draw(title: str) -> Any:
    def draw(outcomes: Mapping[str, Outcome]) -> dict[str, Figure]:
        losses = {network: outcome.train_loss for network, outcome in outcomes.items()}
        accuracy = {network: outcome.accuracy["test_accuracy"] for network, outcome in outcomes.items()}
        return {"curves.png": plotting.learning_curves(losses, accuracy, title)}

    return draw


def train_again(values: flags.FlagValues, overrides: Mapping[str, str]) -> None:
    """Train one of a search's runs again, by itself."""
    found = results.load(values.from_search)
    if "search" not in found.config:
        raise UserError(f"--from_search is {values.from_search!r}, which must be a search's workdir")
    network, run = choose(found, values.network, values.run, values.rank)
    settings.pin()
    config = config_of_run(found, network, run)
    with results.naming_config(found):
        space, _ = check_search(config)
    check_draw(found, network, run, sample_population(space, config.seed, 1, run))
    cli.override(config, overrides)
    space, halving = check_search(config)
    directory = Path(values.workdir or f"runs/{Path(values.from_search).resolve().name}_{network}_run{run}")
    console = Output()

    def prepare() -> trainer.Job:
        dataset = data.load(config.dataset, config.data_dir)
        title = f"{dataset.name}, depth {config.depth}, {network} run {run}"
        earlier = workdir.earlier_implementations(directory)
        if earlier is None:
            earlier = found.provenance.get("implementations", {})  # to repeat it exactly
        implementations = search.choose_implementations(config, [network], earlier)
        job = trainer.Job(
            config=config,
            networks=config.networks,
            sample=search.sampler(config, space),
            recipe=functools.partial(search.recipe, config, dataset, implementation=implementations[network]),
            implementations=implementations,
            train=dataset.train,
            evaluate={"test_accuracy": dataset.test},
            title=title,
            draw=_draw(title),
            halving=halving,
            keep_params=True,
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


def check_draw(found: results.Result, network: str, run: int, drawn: training.Hyperparameters) -> None:
    """Refuse to repeat a run whose hyperparameters, each of shape (1,), are not those in the search's table.

    Raises:
      UserError: naming the first that differs.
    """
    runs = found.networks[network]
    columns = vars(drawn) | {"activation": np.take(ACTIVATIONS, drawn.activation)}
    for name, values in runs.hyperparameters.items():
        there, here = values[run - runs.run[0]], np.asarray(columns[name])[0]
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
