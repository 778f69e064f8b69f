"""The networks of a config, and their inputs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from highway_jax import MLP, ConvNet, data
from highway_jax.data import Array, Split

Model = Callable[[Mapping[str, Any]], nn.Module]  # builds a network from hyperparameters
Preprocess = Callable[[Array], Array]


def network(config: ConfigDict, dataset: data.Dataset, kind: str, implementation: str = "xla") -> Model:
    """The function that builds a config's networks: fully connected in a search, convolutional in a training."""
    if "search" in config:
        return lambda hp: MLP(
            depth=config.depth,
            width=config.width[kind],
            num_classes=dataset.num_classes,
            kind=kind,
            activation=hp["activation"],
            transform_bias=hp["transform_bias"],
            remat=config.remat,
            implementation=implementation,
        )
    return lambda hp: ConvNet(
        stages=config.stages,
        num_classes=dataset.num_classes,
        kind=kind,
        activation=hp["activation"],
        transform_bias=hp["transform_bias"],
        output_std=config.output_std,
        implementation=implementation,
    )


def preprocessing(config: ConfigDict, max_value: int | None, images: Array) -> Preprocess:
    """The function that turns a config's images into its networks' inputs.

    Args:
      config: the config.
      max_value: the largest possible value of a pixel; None for numbers that are not images and are not rescaled.
      images: the training images.
    """
    if max_value is None:
        return jnp.asarray
    if config.get("preprocessing", "rescale") == "rescale":
        return functools.partial(data.rescale, max_value=max_value)
    mean = jax.jit(lambda images: data.mean_image(images, data.global_contrast_normalize))(images)
    return lambda images: data.global_contrast_normalize(images) - mean


def hold_out(config: ConfigDict, dataset: data.Dataset) -> tuple[Split, dict[str, Split]]:
    """Split off the last `config.validation` training examples.

    Returns:
      The training examples, and the sets to evaluate: "test" and, if any examples are held out, "validation".
    """
    held_out = config.get("validation", 0)
    count = len(dataset.train["y"]) - held_out
    if count < 1:
        raise UserError(
            f"config.validation is {held_out}; it must be below {len(dataset.train['y'])}, "
            f"the number of training examples"
        )
    if config.batch_size > count:
        raise UserError(
            f"config.batch_size is {config.batch_size}; it must be at most {count}, the number of training examples"
        )
    train, validation = (
        {name: array[part] for name, array in dataset.train.items()} for part in (slice(count), slice(count, None))
    )
    return train, {"test": dataset.test} | ({"validation": validation} if held_out else {})


def describe(config: ConfigDict, dataset: data.Dataset) -> str:
    """A description such as "convolutional highway network of 19 layers, 2,256,838 parameters".

    Raises:
      UserError: if the stages do not fit the images.
    """
    image = dataset.train["x"].shape[1:]
    try:
        layers, parameters = size(tuple(config.stages), dataset.num_classes, config.block, image)
    except ValueError as error:
        raise UserError(f"config.stages: {error}") from error
    return f"convolutional {config.block} network of {layers} layers, {parameters:,} parameters"


@functools.cache
def size(stages: tuple[str, ...], num_classes: int, kind: str, image: tuple[int, ...]) -> tuple[int, int]:
    """The numbers of layers and parameters of a convolutional network; tracing it takes up to a second."""
    model = ConvNet(stages, num_classes, kind)
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *image), np.float32))
    return len(variables["params"]), sum(leaf.size for leaf in jax.tree.leaves(variables))
