"""Read a teacher from the workdir that `experiments.train` left (highway_jax/distillation.py)."""

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import results, workdir
from experiments.cli import UserError
from highway_jax import ConvNet, checkpoint, data, training
from highway_jax.distillation import Student, Teacher, taught
from highway_jax.models import stages

# What student and teacher must have in common to see the same inputs.
SHARED = ("dataset", "preprocessing", "validation")


def teach(
    config: ConfigDict, dataset: data.Dataset, recipe: Callable[[str], training.Recipe], teacher: Teacher
) -> Callable[[str], training.Recipe]:
    """The recipe with a teacher.

    Raises:
      UserError: if its hint layer and the network's guided layer do not fit.
    """
    for key, network in ("guided_layer", config.stages), ("hint_layer", teacher.network.stages):
        layers = stages.depth(network) - 1
        if config[key] > layers:
            raise UserError(f"config.{key} is {config[key]}; it must be 1 to {layers}, a layer before the output")
    student = Student(ConvNet(config.stages, dataset.num_classes, config.block), config.guided_layer, teacher)
    image = np.zeros((1, *dataset.train.images.shape[1:]), np.float32)
    try:
        jax.eval_shape(student.init, jax.random.key(0), image)
    except ValueError as error:
        raise UserError(f"config.{error}") from error
    return lambda kind: taught(recipe(kind), teacher, config.guided_layer, config.hint_epochs, config.epochs)


def load(config: ConfigDict, dataset: data.Dataset) -> Teacher:
    """The best run, by its training loss, of the workdir that a student's config names.

    Raises:
      UserError: if there is none, or it is damaged, unfinished, or was trained on something else.
    """
    found = results.load(config.teacher)
    if "stages" not in found.config or found.summary is None:
        raise UserError(f"config.teacher is {config.teacher!r}, which must be a finished workdir of experiments.train")
    for key in SHARED:
        if found.config[key] != config[key]:
            raise UserError(
                f"config.teacher is {config.teacher!r}, whose {key} is {found.config[key]!r}; "
                f"it must be {config[key]!r}, as here"
            )
    (block,) = found.kinds
    path = found.directory / "best" / block
    if not path.is_dir():
        raise workdir.damaged(path)
    network = ConvNet(found.config.stages, dataset.num_classes, block, found.config.activation)
    return Teacher(network, checkpoint.restore_params(path), config.hint_layer)
