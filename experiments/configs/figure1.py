"""The keys of a search's config: the random searches of Figure 1 (Section 3.1)."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import base
from experiments.configs.keys import config_of, integer, number, one_of, some_of, span, truth
from highway_jax.functional.activations import ACTIVATIONS

# The kinds of network in a search, with widths that give every kind about 5,100 parameters a layer.
WIDTHS = {"highway": 50, "plain": 71, "residual": 71, "fixed": 71, "lstm": 35}

KEYS = base.KEYS | {
    "networks": some_of(("highway", "plain"), tuple(WIDTHS)),  # highway_jax/stack/kinds.py explains them
    "depth": integer(50, 2, 10**5),  # a plain first layer and depth - 1 layers of the kind
    **{f"width.{kind}": integer(width, 1, 10**5) for kind, width in WIDTHS.items()},
    "remat": truth(False),  # recompute layers in the backward pass: very deep networks take less memory and more time
    # "tpe" is Optuna's sampler, which learns from earlier runs and chooses config.runs_in_memory runs at a time.
    "sampler": one_of("random", ("random", "tpe")),
    # Ranges to draw from; equal ends or a single number fix the value.
    "search.learning_rate": span((1e-3, 1.0), *base.POSITIVE),  # log-uniform
    "search.momentum": span((0.8, 0.99), *base.MOMENTUM),
    "search.decay": span((0.9, 1.0), *base.DECAY),  # factor of the learning rate per epoch
    "search.activation": some_of(("relu", "tanh"), ACTIVATIONS),
    "search.transform_bias": span((-10.0, -1.0), *base.FINITE),  # of networks with gates
    # Successive halving; there is none if `every` is None.
    "search.halving.every": integer(None, 1, base.MANY),  # epochs between halvings, each of which stops the worst runs
    "search.halving.keep": number(0.5, "between 0 and 1", lambda share: 0 < share < 1),  # share of runs kept each time
    "search.halving.at_least": integer(1, 1, base.MANY),  # number of runs that are kept in any case
}


def random_search(dataset: str | Callable[[], Any], depth: int, batch_size: int, epochs: int) -> ConfigDict:
    """The paper's search at one depth; what the paper does not specify is this project's choice."""
    return config_of(KEYS, dataset=dataset, num_runs=100, depth=depth, batch_size=batch_size, epochs=epochs)


def very_deep(dataset: str, batch_size: int, epochs: int) -> ConfigDict:
    """A smaller search of networks with 1000 layers: "SGD did not stall" (Section 2.2)."""
    config = random_search(dataset, depth=1000, batch_size=batch_size, epochs=epochs)
    config.num_runs = 20
    config.remat = True  # 2 MiB a run instead of 38 at a batch size of 50, and no slower
    config.search.transform_bias = (-10.0, -6.0)  # in a trial of 16 runs, none at -5 or above learned the digits
    return config
