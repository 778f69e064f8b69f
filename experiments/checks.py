"""Refuse a config that cannot be run, naming the key, the value and what is allowed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import event_files, guided
from experiments.cli import UserError, leaves
from experiments.configs.convolutional import training
from experiments.configs.figure1 import WIDTHS, random_search
from highway_jax import stack
from highway_jax.functional.activations import ACTIVATIONS
from highway_jax.population import Halving, choice, log_uniform, uniform
from highway_jax.population.space import is_number
from highway_jax.zoo import stages

Space = dict[str, Any]  # of distributions, for `population.fit`
# What a hyperparameter can be, as it will be used: 0.99999999 is 1 in float32.
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "learning_rate": ("above 0", lambda value: value > 0),
    "momentum": ("in [0, 1)", lambda value: 0 <= value < 1),
    "decay": ("in (0, 1]", lambda value: 0 < value <= 1),
    "transform_bias": ("finite", lambda value: True),
}
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
PREPROCESSINGS = ("rescale", "contrast")
IMPLEMENTATIONS = ("auto", *stack.IMPLEMENTATIONS)
RESUME = ("auto", "never")
SAMPLERS = ("random", "tpe")
# Far beyond what can be trained; they turn a slip of the keyboard into a message.
INTEGERS = {
    "num_runs": (1, 10**6),
    "first_run": (0, 10**9),
    "epochs": (1, 10**6),
    "batch_size": (1, 10**9),
    "seed": (0, 2**32 - 1),
    "runs_in_memory": (1, 10**6),
    "runs_per_batch": (1, 10**6),
    "evaluate_every": (1, 10**6),
    "checkpoint_every": (1, 10**6),
    "log_every": (1, 10**6),
}
OPTIONAL = ("runs_in_memory", "runs_per_batch", "evaluate_every", "checkpoint_every", "log_every")
SEARCH_INTEGERS = {"depth": (2, 10**5), **{f"width.{block}": (1, 10**5) for block in WIDTHS}}
TRAINING_INTEGERS = {
    "crop_padding": (0, 10**3),
    "validation": (0, 10**9),
    "hint_layer": (1, 10**5),
    "guided_layer": (1, 10**5),
    "hint_epochs": (1, 10**6),
}


def check_search(config: ConfigDict) -> tuple[Space, Halving | None]:
    """Check every key of a search's config; a single network's name becomes a tuple.

    Returns:
      The space to search, and how runs stop early, if they do.

    Raises:
      UserError: naming the first key that is wrong.
    """
    _check_common(config, random_search("digits", 2, 1, 1), SEARCH_INTEGERS)
    networks = _tuple(config.networks)
    if not networks or any(network not in tuple(WIDTHS) for network in networks) or len(set(networks)) < len(networks):
        raise UserError(f"config.networks is {networks}; it must be one or more of {', '.join(WIDTHS)}, each once")
    _check_bool(config, "remat")
    _check_one_of(config, "implementation", IMPLEMENTATIONS)
    with config.ignore_type():
        config.networks = networks
    _check_sampler(config)
    ranges = {
        key: (_tuple if key == "activation" else _range)(value)
        for key, value in config.search.items()
        if key != "halving"
    }
    return _space("config.search", ranges), _halving(config.search.halving)


def check_training(config: ConfigDict) -> Space:
    """Check every key of a convolutional network's config; returns the space with its only hyperparameters.

    Raises:
      UserError: naming the first key that is wrong.
    """
    _check_common(config, training("digits", (), 1), TRAINING_INTEGERS)
    _check_one_of(config, "block", stages.KINDS)
    _check_one_of(config, "preprocessing", PREPROCESSINGS)
    _check_bool(config, "mirror")
    for key in "stages", "boundaries":
        with config.ignore_type():
            config[key] = _tuple(config[key])
    for stage in config.stages:
        try:
            stages.parse(stage)
        except ValueError as error:
            raise UserError(f"config.stages: {error}") from error
    _check_number(config, "weight_decay", "at least 0", lambda value: value >= 0)
    if config.output_std is not None:
        _check_number(config, "output_std", "above 0, or None", lambda value: value > 0)
    if config.teacher is not None and config.hint_epochs >= config.epochs:
        raise UserError(f"config.hint_epochs is {config.hint_epochs}; it must be below {config.epochs}, config.epochs")
    edges = config.boundaries
    if not all(is_number(edge) and edge > 0 for edge in edges) or list(edges) != sorted(edges):
        raise UserError(f"config.boundaries is {edges}; it must be epochs above 0 in ascending order")
    keys = "learning_rate", "momentum", "decay", "transform_bias"
    ranges = {key: _range(config[key]) for key in keys}
    return _space("config", {**ranges, "activation": (config.activation,)})


def _check_common(config: ConfigDict, template: ConfigDict, integers: dict[str, tuple[int, int]]) -> None:
    given, known = leaves(config), leaves(template)
    if missing := known.keys() - given.keys():
        raise UserError(f"the config has no key {min(missing)!r}; the keys are {', '.join(sorted(known))}")
    if unknown := given.keys() - known.keys():
        raise UserError(f"the config has a key {min(unknown)!r}; the keys are {', '.join(sorted(known))}")
    for key, (low, high) in (INTEGERS | integers).items():
        value = given[key]
        if value is None and key in OPTIONAL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            span = f"at least {low}" if not isinstance(value, int) or value < low else f"at most {high}"
            raise UserError(f"config.{key} is {value!r}; it must be an integer of {span}")
    for key, optional in ("dataset", False), ("data_dir", True), ("teacher", True):
        if key not in known or (optional and config[key] is None):
            continue
        if not (isinstance(config[key], str) and config[key] and _is_unicode(config[key])):
            raise UserError(f"config.{key} is {config[key]!r}; it must be text")
    if config.data_dir is not None and not _is_directory(config.data_dir):
        raise UserError(f"config.data_dir is {config.data_dir!r}; it must be an existing directory")
    _check_mesh(config)
    _check_one_of(config, "matmul_precision", PRECISIONS)
    _check_one_of(config, "resume", RESUME)
    _check_bool(config, "tensorboard")
    if config.tensorboard:
        event_files.require()


def _check_mesh(config: ConfigDict) -> None:
    if config.mesh is None:
        return
    mesh = _tuple(config.mesh)
    if len(mesh) != 2 or not all(type(size) is int and size > 0 for size in mesh):
        raise UserError(f"config.mesh is {mesh}; it must be (runs, data), two numbers of devices")
    if config.batch_size % mesh[1]:
        raise UserError(f"config.mesh is {mesh}; {mesh[1]} devices cannot share batches of {config.batch_size} evenly")


def _check_one_of(config: ConfigDict, key: str, allowed: tuple[str, ...]) -> None:
    if config[key] not in allowed:
        raise UserError(f"config.{key} is {config[key]!r}; it must be one of {', '.join(allowed)}")


def _check_sampler(config: ConfigDict) -> None:
    _check_one_of(config, "sampler", SAMPLERS)
    if config.sampler == "tpe":
        guided.require()
        if config.runs_in_memory is None or config.runs_in_memory >= config.num_runs:
            raise UserError(
                f"config.runs_in_memory is {config.runs_in_memory}; with config.sampler 'tpe', which learns from the "
                f"runs before, it must be below config.num_runs, {config.num_runs}"
            )


def _check_bool(config: ConfigDict, key: str) -> None:
    if not isinstance(config[key], bool):
        raise UserError(f"config.{key} is {config[key]!r}; it must be True or False")


def _check_number(config: ConfigDict, key: str, meaning: str, allowed: Callable[[float], bool]) -> None:
    value = config[key]
    if not is_number(value) or not allowed(value):
        raise UserError(f"config.{key} is {value!r}; it must be a number {meaning}")


def _space(where: str, ranges: dict[str, tuple[Any, ...]]) -> Space:
    """The distributions of a run's hyperparameters (Section 3.1), in the order in which they are drawn."""
    for name, (meaning, allowed) in RANGES.items():
        ends = ranges[name]
        if len(ends) != 2 or not all(is_number(end) and allowed(float(np.float32(end))) for end in ends):
            raise UserError(f"{where}.{name} is {ends}; it must be a range (low, high) of numbers, each {meaning}")
        if ends[0] > ends[1]:
            raise UserError(f"{where}.{name} is {ends}, an inverted range; low must not be above high")
    names = ranges["activation"]
    if not names or not set(names) <= set(ACTIVATIONS) or len(set(names)) < len(names):
        raise UserError(f"{where}.activation is {names}; it must be one or more of {', '.join(ACTIVATIONS)}, each once")
    try:
        return {
            "learning_rate": log_uniform(*ranges["learning_rate"]),
            "momentum": uniform(*ranges["momentum"]),
            "decay": uniform(*ranges["decay"]),
            "activation": choice(*names),
            "transform_bias": uniform(*ranges["transform_bias"]),
        }
    except ValueError as error:
        raise UserError(f"{where}.transform_bias is {ranges['transform_bias']}: {error}") from error


def _halving(config: ConfigDict) -> Halving | None:
    try:
        return None if config.every is None else Halving(**config)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.search.halving.{error}") from error


def _range(value: Any) -> tuple[Any, ...]:
    """The ends of a range; a single number fixes a hyperparameter."""
    ends = _tuple(value)
    return ends * 2 if len(ends) == 1 else ends


def _is_directory(path: str) -> bool:
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such user
        return False


def _is_unicode(text: str) -> bool:
    """Whether text can be encoded; a command line's bytes need not be UTF-8."""
    return text == text.encode(errors="replace").decode()


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
