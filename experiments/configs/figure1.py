"""What the random searches of Figure 1 (Section 3.1) have in common: every key of a search's config."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import base
from experiments.configs.keys import config_of, integer, number, one_of, some_of, span, truth
from highway_jax.functional.activations import ACTIVATIONS

# What the networks of a search may be, and the widths that give a layer about 5,100 parameters, all of them.
WIDTHS = {"highway": 50, "plain": 71, "residual": 71, "fixed": 71, "lstm": 35}

KEYS = base.KEYS | {
    "networks": some_of(("highway", "plain"), tuple(WIDTHS)),  # highway_jax/stack/kinds.py explains them
    "depth": integer(50, 2, 10**5),  # the first plain layer and depth - 1 further ones
    **{f"width.{kind}": integer(width, 1, 10**5) for kind, width in WIDTHS.items()},
    "remat": truth(False),  # compute layers again in the backward pass: less memory for very deep networks, more time
    # "tpe": Optuna's, guided by the runs before, config.runs_in_memory of them at a time
    "sampler": one_of("random", ("random", "tpe")),
    # Ranges to draw from; equal ends, or one number, fix a value.
    "search.learning_rate": span((1e-3, 1.0), *base.POSITIVE),  # log-uniform
    "search.momentum": span((0.8, 0.99), *base.MOMENTUM),
    "search.decay": span((0.9, 1.0), *base.DECAY),  # of the learning rate, per epoch
    "search.activation": some_of(("relu", "tanh"), ACTIVATIONS),
    "search.transform_bias": span((-10.0, -1.0), *base.FINITE),  # of those with gates
    # Successive halving.
    "search.halving.every": integer(
        None, 1, base.MANY
    ),  # epochs after which the worst runs stop, each time; None: never
    "search.halving.keep": number(0.5, "between 0 and 1", lambda share: 0 < share < 1),  # share that goes on each time
    "search.halving.at_least": integer(1, 1, base.MANY),  # runs that go on in any case
}


def random_search(dataset: str | Callable[[], Any], depth: int, batch_size: int, epochs: int) -> ConfigDict:
    """The paper's search at one depth; where the paper is silent, this project's choice."""
    return config_of(KEYS, dataset=dataset, num_runs=100, depth=depth, batch_size=batch_size, epochs=epochs)


def very_deep(dataset: str, batch_size: int, epochs: int) -> ConfigDict:
    """A smaller search, 1000 layers deep: "SGD did not stall" (Section 2.2)."""
    config = random_search(dataset, depth=1000, batch_size=batch_size, epochs=epochs)
    config.num_runs = 20
    config.remat = True  # 2 MiB a run in place of 38 at a batch of 50, and no slower
    config.search.transform_bias = (-10.0, -6.0)  # with -5 or above, no run of sixteen left chance level on the digits
    return config
