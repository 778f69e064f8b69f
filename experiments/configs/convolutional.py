"""What the convolutional networks of Tables 1 to 3 (Sections 3.2 and 3.3) have in common."""

from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configs.base import base


def training(dataset: str | Callable[[], Any], stages: Sequence[str], epochs: int, batch_size: int = 100) -> ConfigDict:
    """The authors' training settings; a config changes what differs."""
    config = base(dataset, num_runs=1, epochs=epochs, batch_size=batch_size)  # num_runs: initializations, at once
    config.evaluate_every = 1
    config.stages = tuple(stages)  # the network; highway_jax/zoo/stages.py explains the language
    config.block = "highway"  # "plain": its twin without gates; "residual": its twin with y = x + H(x)
    config.activation = "relu"
    config.transform_bias = -1.0
    config.output_std = placeholder(float)  # of the output layer's initial weights; None: as the others

    config.preprocessing = "rescale"  # to [0, 1]; or "contrast": global contrast normalization, less the mean image
    config.crop_padding = 0  # pixels that training images are shifted by at most
    config.mirror = False  # mirror training images at random
    config.validation = 0  # examples held out of the training set, evaluated as the test set is

    config.learning_rate = 0.01  # or the ends of a range, from which every run's is drawn log-uniformly
    config.boundaries = ()  # epochs after which the learning rate is multiplied by decay
    config.decay = 0.1
    config.momentum = 0.9  # Nesterov's
    config.weight_decay = 0.001  # of weights; ten times as much of the output layer's

    config.teacher = placeholder(str)  # workdir of a trained network to learn from (highway_jax/zoo/distillation.py)
    config.hint_layer = 2  # the teacher's
    config.guided_layer = 1  # this network's, which learns to predict it
    config.hint_epochs = 1  # in these first epochs
    return config
