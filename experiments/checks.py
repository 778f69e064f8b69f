"""Refuse a search's config that cannot be run, naming the key, the value and what is allowed."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import event_files
from experiments.cli import UserError, leaves
from experiments.configs.figure1 import random_search
from highway_jax.models import BLOCKS
from highway_jax.search import SearchSpace

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# Far beyond what can be trained; they turn a slip of the keyboard into a message.
INTEGERS = {
    "num_runs": (1, 10**6),
    "first_run": (0, 2**31),
    "epochs": (1, 10**6),
    "batch_size": (1, 10**9),
    "seed": (0, 2**32 - 1),
    "depth": (2, 10**5),
    "width.highway": (1, 10**5),
    "width.plain": (1, 10**5),
    "runs_per_batch": (1, 10**6),
    "evaluate_every": (1, 10**6),
    "checkpoint_every": (1, 10**6),
    "log_every": (1, 10**6),
}
OPTIONAL = ("runs_per_batch", "evaluate_every", "checkpoint_every", "log_every")
RESUME = ("auto", "never")


def check(config: ConfigDict) -> SearchSpace:
    """Check every key of a config; returns the space to search. A single network's name becomes a tuple.

    Raises:
      UserError: naming the first key that is wrong.
    """
    known = set(leaves(random_search("digits", 2, 1, 1)))
    given = leaves(config)
    if missing := known - set(given):
        raise UserError(f"the config has no key {min(missing)!r}; experiments/configs/figure1.py shows them all")
    if unknown := set(given) - known:
        raise UserError(f"the config has a key {min(unknown)!r}; the keys are {', '.join(sorted(known))}")
    for key, (low, high) in INTEGERS.items():
        value = given[key]
        if value is None and key in OPTIONAL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            span = f"at least {low}" if not isinstance(value, int) or value < low else f"at most {high}"
            raise UserError(f"config.{key} is {value!r}; it must be an integer of {span}")
    for key, optional in ("dataset", False), ("data_dir", True):
        if not (isinstance(config[key], str) and config[key]) and not (optional and config[key] is None):
            raise UserError(f"config.{key} is {config[key]!r}; it must be text")
    if config.data_dir is not None and not _is_directory(config.data_dir):
        raise UserError(f"config.data_dir is {config.data_dir!r}; it must be an existing directory")
    for key, allowed in ("matmul_precision", PRECISIONS), ("resume", RESUME):
        if config[key] not in allowed:
            raise UserError(f"config.{key} is {config[key]!r}; it must be one of {', '.join(allowed)}")
    if not isinstance(config.tensorboard, bool):
        raise UserError(f"config.tensorboard is {config.tensorboard!r}; it must be True or False")
    if config.tensorboard:
        event_files.require()
    networks = _tuple(config.networks)
    if not networks or any(network not in BLOCKS for network in networks) or len(set(networks)) < len(networks):
        raise UserError(f"config.networks is {networks}; it must be one or more of {', '.join(BLOCKS)}, each once")
    with config.ignore_type():
        config.networks = networks
    ranges = {key: _tuple(value) for key, value in config.search.items()}
    for key, ends in ranges.items():
        if key != "activation" and len(ends) == 1:  # a single number fixes a hyperparameter
            ranges[key] = ends * 2
    try:
        return SearchSpace(**ranges)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.search.{error}") from error


def _is_directory(path: str) -> bool:
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such user
        return False


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
