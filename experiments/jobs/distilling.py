"""Read a teacher from a workdir of `experiments.train` (highway_jax/zoo/distillation.py)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.app.command_line import expanded
from experiments.app.errors import UserError
from experiments.jobs.networks import Model
from experiments.workdir import reading
from experiments.workdir.files import damaged
from highway_jax import ConvNet, data
from highway_jax.zoo import stages
from highway_jax.zoo.distillation import Student, Teacher

# The config keys that must be equal so that student and teacher see the same inputs.
SHARED = ("dataset", "preprocessing", "validation")


def student(
    config: ConfigDict, dataset: data.Dataset, build: Model, teacher: Teacher, steps_per_epoch: int
) -> Callable[[Any], Student]:
    """Turn the function that builds a network into one that builds the same network guided by a teacher.

    Raises:
      UserError: if the teacher's hint layer and the network's guided layer do not fit.
    """
    for key, network in ("guided_layer", config.stages), ("hint_layer", teacher.network.stages):
        layers = stages.depth(network) - 1
        if config[key] > layers:
            raise UserError(f"config.{key} is {config[key]}; it must be 1 to {layers}, a layer before the output")

    def guided(network: Any) -> Student:
        return Student(network, config.guided_layer, teacher, config.hint_epochs, config.epochs, steps_per_epoch)

    image = np.zeros((1, *dataset.train["x"].shape[1:]), np.float32)
    try:
        alone = guided(ConvNet(config.stages, dataset.num_classes, config.block))
        jax.eval_shape(alone.init, jax.random.key(0), image)
    except ValueError as error:
        raise UserError(f"config.{error}") from error
    return lambda hp: guided(build(hp))


def load(config: ConfigDict, dataset: data.Dataset) -> Teacher:
    """Load the run with the lowest training loss from the workdir that a student's config names.

    Raises:
      UserError: if the workdir is missing, damaged or unfinished, or its network was trained on other inputs.
    """
    found = reading.load(expanded(config.teacher))
    if found.program != "train" or not found.finished:
        raise UserError(f"config.teacher is {config.teacher!r}; it must be a finished workdir of experiments.train")
    theirs = found.config
    for key in SHARED:
        if theirs[key] != config[key]:
            raise UserError(
                f"config.teacher is {config.teacher!r}, whose {key} is {theirs[key]!r}; "
                f"it must be {config[key]!r}, as in this config"
            )
    (block,) = found.kinds
    path = found.directory / "best" / block
    if not path.is_dir():
        raise damaged(path, "it is missing")
    network = ConvNet(theirs.stages, dataset.num_classes, block, theirs.activation)
    params = reading.read_params(found, path)
    image = np.zeros((1, *dataset.train["x"].shape[1:]), np.float32)
    reading.check_params(path, params, network, image)
    return Teacher(network, params, config.hint_layer)
