"""The keys of a training's config: the convolutional networks of Tables 1 to 3 (Sections 3.2 and 3.3)."""

from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import base
from experiments.configs.keys import Key, as_tuple, config_of, integer, number, one_of, span, text, truth
from highway_jax.functional.activations import ACTIVATIONS
from highway_jax.population.space import is_number
from highway_jax.zoo import stages


def _stages(value: Any) -> tuple[str, ...]:
    for stage in as_tuple(value):
        try:
            stages.parse(stage)
        except ValueError as error:
            raise ValueError(f"stages (highway_jax/zoo/stages.py): {error}") from error
    return as_tuple(value)


def _ascending(value: Any) -> tuple[float, ...]:
    epochs = as_tuple(value)
    if not all(is_number(epoch) and epoch > 0 for epoch in epochs) or list(epochs) != sorted(epochs):
        raise ValueError("epochs above 0 in ascending order")
    return epochs


KEYS = base.KEYS | {
    "evaluate_every": integer(1, 1, base.MANY),
    "stages": Key((), _stages, tuple),  # the network
    "block": one_of("highway", stages.KINDS),  # "plain": the twin without gates; "residual": y = x + H(x)
    "activation": one_of("relu", ACTIVATIONS),
    "transform_bias": span(-1.0, *base.FINITE),
    "output_std": number(None, *base.POSITIVE),  # of the output layer's initial weights; None: as in other layers
    #
    # "rescale" to [0, 1], or "contrast": global contrast normalization, minus the mean image.
    "preprocessing": one_of("rescale", ("rescale", "contrast")),
    "crop_padding": integer(0, 0, 1000),  # training images are shifted by up to this many pixels
    "mirror": truth(False),  # mirror training images at random
    "validation": integer(0, 0),  # examples held out of the training set and evaluated like the test set
    #
    # A number, or the ends of a range from which each run's value is drawn, as in a search.
    "learning_rate": span(0.01, *base.POSITIVE),
    "boundaries": Key((), _ascending, tuple),  # epochs after which the learning rate is multiplied by decay
    "decay": span(0.1, *base.DECAY),
    "momentum": span(0.9, *base.MOMENTUM),  # Nesterov's
    "weight_decay": number(0.001, "at least 0", lambda decay: decay >= 0),  # ten times as much in the output layer
    #
    "teacher": text(None),  # workdir of a trained network to learn from (highway_jax/zoo/distillation.py)
    "hint_layer": integer(2, 1, 10**5),  # layer of the teacher
    "guided_layer": integer(1, 1, 10**5),  # layer of this network that learns to predict the hint layer
    "hint_epochs": integer(1, 1, base.MANY),  # number of first epochs in which it does
}


def training(dataset: str | Callable[[], Any], stages: Sequence[str], epochs: int, batch_size: int = 100) -> ConfigDict:
    """The authors' training settings; a config changes those that differ."""
    return config_of(KEYS, dataset=dataset, stages=tuple(stages), epochs=epochs, batch_size=batch_size)
