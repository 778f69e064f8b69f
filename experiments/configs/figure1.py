"""What the random searches of Figure 1 (Section 3.1) have in common: every key of a search's config."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configs.base import base

# What the networks of a search may be, and the widths that give a layer about 5,100 parameters, all of them.
WIDTHS = {"highway": 50, "plain": 71, "residual": 71, "fixed": 71, "lstm": 35}


def random_search(dataset: str | Callable[[], Any], depth: int, batch_size: int, epochs: int) -> ConfigDict:
    """The paper's search at one depth; where the paper is silent, this project's choice."""
    config = base(dataset, num_runs=100, epochs=epochs, batch_size=batch_size)  # num_runs of each network
    config.networks = ("highway", "plain")  # "residual", "fixed", "lstm" too; highway_jax/stack/kinds.py explains them
    config.depth = depth  # the first plain layer and depth - 1 further ones
    config.width = ConfigDict(WIDTHS)
    config.implementation = "auto"  # of the layers: "xla"; "fused", on a CPU with a C++ compiler; "auto", the faster
    config.remat = False  # compute layers again in the backward pass: less memory for very deep networks, more time

    config.sampler = "random"  # "tpe": Optuna's, guided by the runs before, config.runs_in_memory of them at a time

    config.search = ConfigDict()  # ranges to draw from; equal ends fix a value
    config.search.learning_rate = (1e-3, 1.0)  # log-uniform
    config.search.momentum = (0.8, 0.99)
    config.search.decay = (0.9, 1.0)  # of the learning rate, per epoch
    config.search.activation = ("relu", "tanh")
    config.search.transform_bias = (-10.0, -1.0)  # of those with gates
    config.search.halving = ConfigDict()  # successive halving
    config.search.halving.every = placeholder(int)  # epochs after which the worst runs stop, each time; None: never
    config.search.halving.keep = 0.5  # share of the runs that go on each time
    config.search.halving.at_least = 1  # runs that go on in any case
    return config


def very_deep(dataset: str, batch_size: int, epochs: int) -> ConfigDict:
    """A smaller search, 1000 layers deep: "SGD did not stall" (Section 2.2)."""
    config = random_search(dataset, depth=1000, batch_size=batch_size, epochs=epochs)
    config.num_runs = 20
    config.remat = True  # 2 MiB a run in place of 38 at a batch of 50, and no slower
    config.search.transform_bias = (-10.0, -6.0)  # with -5 or above, no run of sixteen left chance level on the digits
    return config
