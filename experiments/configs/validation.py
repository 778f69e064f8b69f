"""Check configs: errors name the key, the value and what is allowed."""

import importlib.util
from typing import Any

from ml_collections import ConfigDict

from experiments.app.errors import UserError, shown
from experiments.configs import convolutional, figure1
from experiments.configs.keys import leaves
from highway_jax.population import Halving, choice, log_uniform, uniform

Space = dict[str, Any]  # distributions by name, for `population.fit`
Values = dict[str, Any]  # a config's values as they are used, by key


def check(config: ConfigDict) -> tuple[Space, Halving | None]:
    """Check a whole config, of a search or a training; single values of keys that hold tuples become tuples.

    Returns:
      The space of the runs' hyperparameters, and the policy that stops runs early, if any.

    Raises:
      UserError: if a key is wrong; the message names the first one.
    """
    values = check_values(config)
    with config.ignore_type():
        for name in ("networks", "stages", "boundaries"):
            if name in config:
                config[name] = values[name]
    if values["mesh"] and config.batch_size % values["mesh"][1]:
        shares = values["mesh"][1]
        raise UserError(
            f"config.mesh is {values['mesh']}; {shares} devices cannot share batches of {config.batch_size} evenly"
        )
    if config.tensorboard:
        _require("tensorboardX", "config.tensorboard is True, which needs tensorboardX", "tensorboard")
    if "search" in config:
        return _space(values, "search."), _check_search(config)
    if config.teacher is not None and config.hint_epochs >= config.epochs:
        raise UserError(f"config.hint_epochs is {config.hint_epochs}; it must be below {config.epochs}, config.epochs")
    return _space(values | {"activation": (config.activation,)}), None


def check_values(config: ConfigDict) -> Values:
    """Check each key of a config on its own; returns the values as they are used.

    Raises:
      UserError: if a key is wrong; the message names the first one.
    """
    keys = figure1.KEYS if "search" in config else convolutional.KEYS
    given = leaves(config)
    if missing := keys.keys() - given.keys():
        raise UserError(f"the config has no key {min(missing)!r}; the keys are {', '.join(sorted(keys))}")
    if unknown := given.keys() - keys.keys():
        raise UserError(f"the config has a key {shown(min(unknown))}; the keys are {', '.join(sorted(keys))}")
    values: Values = {}
    for name, key in keys.items():
        value = given[name]
        try:
            values[name] = key.checked(value)
        except ValueError as error:
            if isinstance(value, tuple) and len(value) == 1:  # a single value on the command line
                (value,) = value
            raise UserError(f"config.{name} is {shown(value)}; it must be {error}") from error
    return values


def _check_search(config: ConfigDict) -> Halving | None:
    if config.sampler == "tpe":
        _require("optuna", "config.sampler is 'tpe', which needs Optuna", "optuna")
        if config.runs_in_memory is None or config.runs_in_memory >= config.num_runs:
            raise UserError(
                f"config.runs_in_memory is {config.runs_in_memory}; with config.sampler 'tpe', which learns from "
                f"earlier runs, it must be below config.num_runs, {config.num_runs}"
            )
    return Halving(**config.search.halving) if config.search.halving.every else None


def _require(module: str, why: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{why}; install it with: pip install 'highway-jax[{extra}]'")


def _space(values: Values, prefix: str = "") -> Space:
    """The distributions of a run's hyperparameters (Section 3.1), in the order of the draws."""
    learning_rate, momentum, decay, activation, transform_bias = (
        values[prefix + name] for name in ("learning_rate", "momentum", "decay", "activation", "transform_bias")
    )
    try:
        return {
            "learning_rate": log_uniform(*learning_rate),
            "momentum": uniform(*momentum),
            "decay": uniform(*decay),
            "activation": choice(*activation),
            "transform_bias": uniform(*transform_bias),
        }
    except ValueError as error:  # the ends are too far apart for float32
        raise UserError(f"config.{prefix}transform_bias is {transform_bias}: {error}") from error
