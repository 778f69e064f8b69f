"""What it takes to train a run that a search has found again, by itself."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.workdir import reading
from experiments.workdir.contents import Workdir
from highway_jax import population


def config_of_run(found: Workdir, network: str, run: int) -> ConfigDict:
    """The config that trains one run of a search by itself, evaluated after every epoch."""
    config = reading.as_program_has_it(found.config)
    config.networks, config.first_run, config.num_runs, config.evaluate_every = (network,), run, 1, 1
    config.search.halving.every = None
    if config.sampler != "random":  # what such a run has does not follow from its number
        config.sampler = "random"
        result = found.results[network]
        for name, value in result.hyperparameters_of(result.index(run)).items():
            if name == "activation" or np.isfinite(value):  # a plain network has no transform bias
                config.search[name] = (value,)
    return config


def check_draw(found: Workdir, network: str, run: int, space: Mapping[str, Any], seed: int) -> None:
    """Refuse to repeat a run whose hyperparameters are not those that a search with this space and seed gives it.

    Raises:
      UserError: naming the first that differs.
    """
    given = population.Space(space)
    drawn = given.readable(given.draw(population.keys(seed)[0], np.array([run])), 1)
    result = found.results[network]
    for name, values in result.hyperparameters.items():
        there, here = values[result.index(run)], drawn[name][0]
        if name == "activation":
            same = there == here
        else:  # compilers and devices differ in the last digit; a network without gates has no transform bias
            same = np.isnan(there) or np.isclose(there, here, rtol=1e-5, atol=1e-6 * np.abs(values).max())
        if not same:
            raise UserError(
                f"{found.directory / 'runs.csv'}: {name} of {network} run {run} is {there!s}, but the workdir's config "
                f"gives {here!s}; the workdir was changed, or made by another version"
            )


def compare(before: np.ndarray, now: np.ndarray) -> str:
    """Say whether a training curve repeats an earlier one, over the epochs that they share."""
    epochs = min(len(before), len(now))
    before, now = before[:epochs], now[:epochs]
    if np.array_equal(before, now, equal_nan=True):
        return f"the curve repeats the search's exactly ({epochs} epochs)"
    finite = np.isfinite(before) & np.isfinite(now)
    difference = np.abs(now - before)[finite] / before[finite]
    return (
        f"the curve differs from the search's by up to {difference.max(initial=0):.1e} of its value ({epochs} epochs)"
    )
