"""Configs by name or from a file, and changes of their keys."""

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

USER_CONFIG = "config_config"  # what ml_collections calls the module of a config file


# Of each program, by a key of its configs: a key of the other program's configs, what those are, and that program.
OTHER_PROGRAM = {"search": ("stages", "no search's", "train"), "stages": ("search", "a search's", "search")}


class DataFunction(NamedTuple):
    """A function of a config file that returns a dataset, and what configs and workdirs call it."""

    name: str
    function: Callable[[], Any]


class Loaded(NamedTuple):
    """A config with its label, and the function that its file has for `config.dataset`, if it has one."""

    label: str
    config: ConfigDict
    function: DataFunction | None


def known_configs() -> dict[str, str]:
    """Every config name, and the file and variant that it stands for, "FILE:VARIANT"."""
    known = {}
    for info in pkgutil.iter_modules(configs.__path__):
        module = importlib.import_module(f"{configs.__name__}.{info.name}")
        for variant in getattr(module, "VARIANTS", ()):
            known[f"{info.name}_{variant}"] = f"{module.__file__}:{variant}"
    return known


def names(having: str) -> str:
    """The known configs with a key, "search" or "stages", for a message."""
    return ", ".join(name for name, file in known_configs().items() if not having or having in _read(file))


def load(name: str | None, overrides: Mapping[str, str], having: str = "") -> Loaded:
    """A config by a known name or from a Python file with `get_config()`, with changes of its keys.

    Args:
      name: of a known config, or the path to a file, maybe with ":VARIANT".
      overrides: values of keys, as text.
      having: a key of the configs that the program takes, "search" or "stages"; by default it takes all.

    Raises:
      UserError: if there is no such config, or it cannot be changed so.
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
        is_config = hasattr(found, "to_json")  # raises what ml_collections has put off
    except (Exception, SystemExit) as error:
        reason: BaseException = error
        while isinstance(reason, flags.Error | ValueError) and reason.__context__ is not None:  # which wrap the file's
            reason = reason.__context__
        if isinstance(reason, AttributeError) and reason.name == "get_config":
            raise UserError(f"--config is {given}, which must have a function get_config()") from error
        raise UserError(f"--config is {given}, which cannot be loaded: {shortened(first_line(reason), 300)}") from error
    if not (is_config and isinstance(found, ConfigDict | FrozenConfigDict)):
        raise UserError(f"--config is {given}, whose get_config() must return a ConfigDict")
    try:
        config = ConfigDict(found) if isinstance(found, FrozenConfigDict) else found  # a copy is sorted
        function = _take_function(config, Path(path).stem)
        place = "a key"
        for key, value in leaves(config).items():
            place = f"config.{shortened(key)}"
            json.dumps({key: value})  # it is written to the workdir
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"--config is {given}, in which {place} is no JSON: {first_line(error)}") from error
    if (other := OTHER_PROGRAM.get(having)) and other[0] in config:
        raise UserError(f"--config is {given}, which is {other[1]}; use it with: python -m experiments.{other[2]}")
    override(config, overrides)
    label = name if name in known else Path(path).stem + (f"_{variant}" if variant else "")
    return Loaded(label or "", config, function)


def _read(file: str) -> Any:
    """What `get_config` of "FILE:VARIANT" returns."""
    sys.modules.pop(USER_CONFIG, None)  # a file without `get_config` would have that of the file before
    values = flags.FlagValues()
    argv = ["", f"--config={file}"]
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=False, sys_argv=argv)
    values(argv)
    return values.config


def _take_function(config: ConfigDict, file: str) -> DataFunction | None:
    """The function that is a config's dataset, in whose place comes its name."""
    function = config.get("dataset", "")
    if isinstance(function, str):
        return None
    if not callable(function):
        raise UserError(
            f"config.dataset is an object of type {type(function).__name__}; it must be a name, or a function of no "
            "arguments that returns arrays (the function itself, not what it returns)"
        )
    module, name = (getattr(function, key, "") for key in ("__module__", "__qualname__"))
    name = f"{file if module == USER_CONFIG else module}.{name or type(function).__qualname__}()"
    with config.unlocked(), config.ignore_type():
        config.dataset = name
    return DataFunction(name, function)


def is_data_function(dataset: str) -> bool:
    """Whether this is what configs call a dataset that comes from a function."""
    return dataset.endswith("()")


def override(config: ConfigDict, values: Mapping[str, str]) -> None:
    """Change keys of a config to values given as text.

    Raises:
      UserError: naming the key that there is not, or whose type the value is not of.
    """
    for key, value in values.items():
        keys = leaves(config)
        if key not in keys:
            inside = [k for k in keys if k.startswith(key + ".")]
            raise UserError(
                f"--config.{shortened(key)} is not a key of the config; the keys are {', '.join(inside or keys)}"
            )
        declared = (figure1.KEYS if "search" in config else convolutional.KEYS).get(key)
        if value == "None" and declared is not None and declared.default is None:  # not the text
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
    """Where the dataset is a path to a .npz file, keep its name, and its directory as `data_dir`.

    A workdir says what a dataset is called, and not where files are read.
    """
    path = Path(str(config.get("dataset", "")))
    if path.suffix == SUFFIX and path.name != str(path):
        if config.get("data_dir") is not None:
            raise UserError(f"config.dataset is {config.dataset!r}, a path; config.data_dir says where it is already")
        config.dataset, config.data_dir = path.name, str(path.expanduser().parent)
