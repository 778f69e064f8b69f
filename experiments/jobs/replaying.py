"""Train one run of a search again, by itself."""

import copy

import numpy as np
from ml_collections import ConfigDict

from experiments.configs import figure1
from experiments.workdir.contents import Workdir

# Keys that return to their defaults: how the search's devices shared the work, and what computed its layers.
ELSEWHERE = ("implementation", "mesh", "runs_in_memory", "runs_per_batch")


def config_of_run(found: Workdir, network: str, run: int) -> ConfigDict:
    """The config that trains one run of a search by itself with the same hyperparameters and evaluates every epoch."""
    config = copy.deepcopy(found.config)
    config.update({key: figure1.KEYS[key].default for key in ELSEWHERE})
    config.networks, config.first_run, config.num_runs, config.evaluate_every = (network,), run, 1, 1
    config.sampler, config.search.halving.every = "random", None
    result = found.results[network]
    for name, value in result.hyperparameters_of(result.index(run)).items():
        if name == "activation" or np.isfinite(value):  # a plain network has no transform bias
            config.search[name] = (value,)
    return config


def compare(before: np.ndarray, now: np.ndarray) -> str:
    """A sentence on whether a training curve repeats an earlier one, over the epochs that both have."""
    epochs = min(len(before), len(now))
    before, now = before[:epochs], now[:epochs]
    if np.array_equal(before, now, equal_nan=True):
        return f"the curve repeats the search's exactly ({epochs} epochs)"
    finite = np.isfinite(before) & np.isfinite(now)
    difference = np.abs(now - before)[finite] / before[finite]
    return (
        f"the curve differs from the search's by up to {difference.max(initial=0):.1e} of its value ({epochs} epochs)"
    )
