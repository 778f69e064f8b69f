"""Load configs by name or from a file, and change their keys."""

import functools
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from experiments import configs
from experiments.app.command_line import expanded
from experiments.app.errors import UserError, shortened, shown
from experiments.configs import convolutional, figure1
from experiments.configs.keys import leaves
from highway_jax.data import SUFFIX
from highway_jax.files import first_line

USER_CONFIG = "config_config"  # the module name that ml_collections gives a config file


# By a key of a program's configs: a key of the other program's configs, what they are, and the other program.
OTHER_PROGRAM = {
    "search": ("stages", "a convolutional network's", "train"),
    "stages": ("search", "a search's", "search"),
}


class DataFunction(NamedTuple):
    """A function in a config file that returns a dataset, and its name in configs and workdirs."""

    name: str
    function: Callable[[], Any]


class Loaded(NamedTuple):
    """A config, its label, and the function that its file gives as `config.dataset`, if any."""

    label: str
    config: ConfigDict
    function: DataFunction | None


def known_configs() -> dict[str, str]:
    """The names of all configs, and the file and variant of each as "FILE:VARIANT"."""
    known = {}
    for info in pkgutil.iter_modules(configs.__path__):
        module = importlib.import_module(f"{configs.__name__}.{info.name}")
        for variant in getattr(module, "VARIANTS", ()):
            known[f"{info.name}_{variant}"] = f"{module.__file__}:{variant}"
    return known


def names(having: str) -> str:
    """The names of the configs that have a key, "search" or "stages", for an error message."""
    return ", ".join(name for name, file in known_configs().items() if not having or having in _read(file))


def load(name: str | None, overrides: Mapping[str, str], having: str = "") -> Loaded:
    """Load a config by name or from a Python file with `get_config()`, and change its keys.

    Args:
      name: the name of a config, or the path to a file, maybe followed by ":VARIANT".
      overrides: values of keys, as text.
      having: "search" or "stages", a key that configs of the program must have; by default all configs are allowed.

    Raises:
      UserError: if there is no such config, or a key cannot have the value given.
    """
    known = known_configs()
    given = "missing" if name is None else shown(name)
    file = known.get(name or "", expanded(name or ""))
    path, _, variant = file.partition(":")
    if not path.endswith(".py"):
        raise UserError(f"--config is {given}; it must be one of {names(having)}, or a path to a .py file")
    if not Path(path).is_file():
        raise UserError(f"--config is {given}, but there is no such file")
    try:
        found = _read(file)
        is_config = hasattr(found, "to_json")  # ml_collections raises some errors only at this access
    except (Exception, SystemExit) as error:
        reason: BaseException = error
        while isinstance(reason, flags.Error | ValueError) and reason.__context__ is not None:  # wrappers
            reason = reason.__context__
        if isinstance(reason, AttributeError) and reason.name == "get_config":
            raise UserError(f"--config is {given}, which has no function get_config(); it must have one") from error
        raise UserError(f"--config is {given}, which cannot be loaded: {shortened(first_line(reason), 300)}") from error
    if not (is_config and isinstance(found, ConfigDict | FrozenConfigDict)):
        raise UserError(f"--config is {given}, whose get_config() must return a ConfigDict")
    try:
        config = ConfigDict(found) if isinstance(found, FrozenConfigDict) else found  # a copy sorts keys
        function = _take_function(config, Path(path).stem)
        place = "a key"
        for key, value in leaves(config).items():
            place = f"config.{shortened(key)}"
            json.dumps({key: value})  # the workdir keeps it as JSON
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"--config is {given}, in which {place} is not JSON: {first_line(error)}") from error
    if (other := OTHER_PROGRAM.get(having)) and other[0] in config:
        raise UserError(f"--config is {given}, which is {other[1]}; use it with: python -m experiments.{other[2]}")
    override(config, overrides)
    label = name if name in known else Path(path).stem + (f"_{variant}" if variant else "")
    return Loaded(label or "", config, function)


def _read(file: str) -> Any:
    """The config that `get_config` of "FILE:VARIANT" returns."""
    sys.modules.pop(USER_CONFIG, None)  # a file without `get_config` would use that of the previous file
    values = flags.FlagValues()
    argv = ["", f"--config={file}"]
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=False, sys_argv=argv)
    values(argv)
    return values.config


def _take_function(config: ConfigDict, file: str) -> DataFunction | None:
    """Take the function out of `config.dataset`, if it is one, and leave its name there."""
    function = config.get("dataset", "")
    if isinstance(function, str):
        return None
    if not callable(function):
        raise UserError(
            f"config.dataset is an object of type {type(function).__name__}; it must be a name or a function of no "
            "arguments that returns arrays (the function itself, not its result)"
        )
    module, name = (getattr(function, key, "") for key in ("__module__", "__qualname__"))
    name = f"{file if module == USER_CONFIG else module}.{name or type(function).__qualname__}()"
    with config.unlocked(), config.ignore_type():
        config.dataset = name
    return DataFunction(name, function)


def is_data_function(dataset: str) -> bool:
    """Whether the name of a dataset stands for a function."""
    return dataset.endswith("()")


def override(config: ConfigDict, values: Mapping[str, str]) -> None:
    """Set keys of a config to values given as text.

    Raises:
      UserError: if a key does not exist, or its value is of the wrong type; the message names the key.
    """
    for key, value in values.items():
        keys = leaves(config)
        if key not in keys:
            inside = [k for k in keys if k.startswith(key + ".")]
            raise UserError(
                f"--config.{shortened(key)} is not a key of the config; the keys are {', '.join(inside or keys)}"
            )
        declared = (figure1.KEYS if "search" in config else convolutional.KEYS).get(key)
        if value == "None" and declared is not None and declared.default is None:  # None itself, not the text
            config.update_from_flattened_dict({key: None})
            continue
        parsed = flags.FlagValues()
        argv = ["", f"--config.{key}={value}"]
        try:
            config_flags.DEFINE_config_dict("config", config, flag_values=parsed, lock_config=False, sys_argv=argv)
            parsed(argv)
        except (flags.Error, TypeError, ValueError, RecursionError, MemoryError) as error:  # Python's parser too
            *parents, leaf = key.split(".")
            kind = functools.reduce(getattr, parents, config).get_type(leaf)
            raise UserError(f"--config.{key} is {shown(value)}; it must be of type {kind.__name__}") from error
    _split_data_path(config)


def _split_data_path(config: ConfigDict) -> None:
    """Split a path to a .npz file into the dataset's name and `data_dir`, since a workdir records no paths of data."""
    path = Path(str(config.get("dataset", "")))
    if path.suffix == SUFFIX and path.name != str(path):
        if config.get("data_dir") is not None:
            raise UserError(
                f"config.dataset is {config.dataset!r}, a path, and config.data_dir is {config.data_dir!r}; "
                "only one of them may name the directory"
            )
        config.dataset, config.data_dir = path.name, str(path.expanduser().parent)
