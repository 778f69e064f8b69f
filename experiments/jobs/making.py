"""Make a job of a config: task, space, data and the arguments of `fit`, for every program."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments.configs.loading import DataFunction
from experiments.configs.validation import check
from experiments.jobs import datasets, distilling, guiding, networks
from experiments.jobs.implementations import choose_implementations
from experiments.jobs.job import Job, too_many
from highway_jax import data, parallel, population
from highway_jax.data import Split
from highway_jax.population import Task
from highway_jax.zoo import distillation, optim

EPOCH = 100  # bytes of host memory that the curves and tables take per run and epoch


def job_of(
    config: ConfigDict,
    function: DataFunction | None = None,
    directory: Path = Path(),
    *,
    earlier: Mapping[str, str] | None = None,
    outlined: bool = False,
) -> Job:
    """The job of a config, of a search or a training.

    Args:
      config: the config; it is checked here.
      function: the function in a config file that returns the data, if any.
      directory: the workdir.
      earlier: what computed the layers in the work that is resumed or repeated (`choose_implementations`).
      outlined: whether the shapes and dtypes of the data are enough (`data.outline`).

    Raises:
      UserError, DataError: if the job cannot be run; the message is one line.
    """
    space, halving = check(config)
    if config.num_runs * config.epochs * EPOCH > (there := parallel.host_memory()):
        raise too_many(config, f"there are {there / 2**30:,.1f} GiB")
    dataset = datasets.load(config.dataset, config.data_dir, function, outlined=outlined)
    train, evaluate = networks.hold_out(config, dataset)
    if "stages" in config:
        return _training(config, space, dataset, train, evaluate, earlier, outlined)
    implementations = choose_implementations(config, config.networks, earlier)
    return Job(
        config=config,
        networks=config.networks,
        task=lambda network: _search_task(config, dataset, network, implementations.get(network, "xla")),
        space=space,
        train=train,
        evaluate=evaluate,
        title=f"{dataset.name}, depth {config.depth}",
        implementations=implementations,
        halving=halving,
        sampler=functools.partial(guiding.sampler, space, directory) if config.sampler == "tpe" else None,
    )


def _training(
    config: ConfigDict,
    space: Mapping[str, Any],
    dataset: data.Dataset,
    train: Split,
    evaluate: Mapping[str, Split],
    earlier: Mapping[str, str] | None,
    outlined: bool,
) -> Job:
    """The job of training one kind of convolutional network from `num_runs` initializations."""
    title = f"{dataset.name}, {networks.describe(config, dataset)}"
    guide = None if config.teacher is None or outlined else distilling.load(config, dataset)
    if guide is not None:
        title += f", taught by {config.teacher}"
    implementations = choose_implementations(config, (config.block,), earlier)
    task = _training_task(config, dataset, train, guide, outlined, implementations[config.block])
    return Job(
        config=config,
        networks=(config.block,),
        task=lambda network: task,
        space=space,
        train=train,
        evaluate=evaluate,
        title=title,
        implementations=implementations,
        keep_params=True,
        rank_by="train_loss" if guide is None else "train_cross_entropy",
        inputs={} if guide is None else {"teacher": guide.params},
    )


def _search_task(config: ConfigDict, dataset: data.Dataset, network: str, implementation: str) -> Task:
    """The task of a search (Section 3.1): SGD with momentum and an exponentially decaying learning rate."""
    steps = len(dataset.train["y"]) // config.batch_size

    def optimizer(hp: Mapping[str, Any]) -> optax.GradientTransformation:
        rate = population.schedules.exponential_decay(hp["learning_rate"], steps, hp["decay"], staircase=True)
        return optax.sgd(rate, hp["momentum"])

    return population.supervised(
        model=networks.network(config, dataset, network, implementation),
        loss=population.cross_entropy,
        optimizer=optimizer,
        metrics={"accuracy": population.accuracy},
        preprocess=_of_images(networks.preprocessing(config, dataset.max_value, dataset.train["x"])),
    )


def _training_task(
    config: ConfigDict,
    dataset: data.Dataset,
    train: Split,
    guide: distillation.Teacher | None,
    outlined: bool,
    implementation: str,
) -> Task:
    """The task of training a convolutional network (Sections 3.2 and 3.3), with or without a teacher."""
    steps = len(train["y"]) // config.batch_size
    preprocess = networks.preprocessing(config, dataset.max_value, train["x"][: 1 if outlined else None])

    def optimizer(hp: Mapping[str, Any]) -> optax.GradientTransformation:
        rate = optim.step_decay(hp["learning_rate"], hp["decay"], config.boundaries, steps)
        return optim.nesterov(rate, hp["momentum"], config.weight_decay)

    def augment(key: jax.Array, batch: Split) -> Split:
        crop, mirror = jax.random.split(key)
        images = jnp.asarray(batch["x"])
        if config.crop_padding:
            images = data.random_crop(crop, images, config.crop_padding)
        return {**batch, "x": data.random_mirror(mirror, images) if config.mirror else images}

    hooks: dict[str, Any] = {"preprocess": _of_images(preprocess), "augment": augment}
    build = networks.network(config, dataset, config.block, implementation)
    if guide is not None:
        return distillation.taught(distilling.student(config, dataset, build, guide, steps), optimizer, **hooks)
    metrics = {"accuracy": population.accuracy}
    return population.supervised(build, population.cross_entropy, optimizer, metrics, **hooks)


def _of_images(preprocess: networks.Preprocess) -> Callable[[Split], Split]:
    """Apply `preprocess` to the images of a batch."""
    return lambda batch: {**batch, "x": preprocess(batch["x"])}
