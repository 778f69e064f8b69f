"""What the programs share at their edge: the command line, configs, and how mistakes are reported."""

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import jax
from absl import flags, logging
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from experiments import configs
from highway_jax.data import SUFFIX, DataError
from highway_jax.files import first_line
from highway_jax.parallel import Elsewhere, ProcessLost

USER_CONFIG = "user_config"  # what a config file's module is called


class UserError(Exception):
    """A mistake that the user can mend; the message is one line naming what was given and what is allowed."""


class Interrupted(Exception):
    """A signal has stopped the program, in order.

    Args:
      signal: its number.
      where: how far the work was.
    """

    def __init__(self, signal: int, where: str):
        super().__init__(where)
        self.signal = signal


class DataFunction(NamedTuple):
    """A function of a config file that returns a dataset, and what configs and workdirs call it."""

    name: str
    function: Callable[[], Any]


class StopRequest:
    """Whether a signal has asked the program to stop: its number, or 0.

    Attributes:
      signal: what this process has got.
      agreed: what all processes of several act on.
    """

    signal = 0
    agreed = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take SIGINT and SIGTERM as requests to stop at the next good moment; a second one stops at once."""
    request = StopRequest()

    def note(number: int, frame: Any) -> None:
        if request.signal:
            os._exit(128 + number)
        request.signal = number
        os.write(2, b"stopping after this epoch; once more stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def warn(text: str) -> None:
    """Say on stderr what went wrong without stopping the work."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def run(main: Callable[[list[str]], None], usage: str) -> NoReturn:
    """Run a program and exit: 0 when done, 2 with one line for a user's mistake, 128 + N after signal N,
    1 with one line when another process of several is lost.

    A file that cannot be read or written counts as the user's to mend. `--help` prints `usage`, the
    program's docstring, instead.
    """
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):  # what it cannot encode, it escapes
            stream.reconfigure(errors="backslashreplace")
    logging.set_verbosity(logging.FATAL)  # TFDS warns of what is reported here in words of our own
    sys.unraisablehook = _main_thread_only
    getLogger("asyncio").disabled = True  # Orbax's tasks: what failed in one is reported where a save is waited for
    try:
        if any(arg in ("-h", "--help") for arg in sys.argv[1:]):
            say(usage.strip())
        else:
            main(sys.argv[1:])
    except (UserError, DataError) as error:
        _fail(2, f"error: {error}")
    except OSError as error:
        _fail(2, f"error: {error.filename or 'a file'}: {error.strerror or error}")
    except Elsewhere:
        _fail(2)
    except ProcessLost as error:
        _fail(1, f"error: {error}; the same command goes on from the last checkpoint")
    except Interrupted as stop:
        print(f"interrupted {stop}", file=sys.stderr, flush=True)
        jax.distributed.shutdown()  # waits for all processes
        os._exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        # At once: XLA's threads may be at work, and the interpreter's end would pull the ground from under them.
        os._exit(130)
    sys.exit(0)


def _fail(status: int, *lines: str) -> NoReturn:
    """Exit with a line on stderr. One of several processes does so at once: an orderly end would wait for all."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)
    if not jax.distributed.is_initialized():
        sys.exit(status)
    with contextlib.suppress(RuntimeError):  # there may be no device
        if jax.process_index() == 0:
            time.sleep(3)  # with it goes JAX's coordinator, and that aborts those who have not had their say
    os._exit(status)


def _main_thread_only(error: Any) -> None:
    """What fails in a thread, such as one that writes a checkpoint, is reported where its result is asked for."""
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(error)


def say(text: str) -> None:
    """Print a line. That nobody reads on (`| head`) is no reason to stop working."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        ignore_output()


def ignore_output() -> None:
    """Send what is printed from now on nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def known_configs() -> dict[str, tuple[ModuleType, str]]:
    """Every config name, with the module that makes it and the variant to ask for."""
    known = {}
    for info in pkgutil.iter_modules(configs.__path__):
        module = importlib.import_module(f"{configs.__name__}.{info.name}")
        for variant in getattr(module, "VARIANTS", ()):
            known[f"{info.name}_{variant}"] = module, variant
    return known


def load_config(name: str | None) -> tuple[str, ConfigDict, DataFunction | None]:
    """Make a config from a known name or a path to a Python file with `get_config()`.

    Returns:
      A label, the config, and the function that the file has for `config.dataset`, if it has one.
    """
    if name is None:
        raise UserError(f"--config is missing; it must be one of {', '.join(known_configs())}, or a path to a .py file")
    known = known_configs()
    if name in known:
        module, variant = known[name]
        return name, module.get_config(variant), None
    path, _, variant = expanded(name).partition(":")
    if not path.endswith(".py"):
        raise UserError(f"--config is {name!r}; it must be one of {', '.join(known)}, or a path to a .py file")
    if not Path(path).is_file():
        raise UserError(f"--config is {name!r}, but there is no such file")
    try:
        spec = importlib.util.spec_from_file_location(USER_CONFIG, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
    except (Exception, SystemExit) as error:
        raise UserError(f"--config is {name!r}, which cannot be loaded: {first_line(error)}") from error
    if not isinstance(config, (ConfigDict, FrozenConfigDict)):
        raise UserError(f"--config is {name!r}, whose get_config() must return a ConfigDict")
    try:
        config = ConfigDict(config)
        function = _take_function(config, Path(path).stem)
        if not isinstance(given := config.get("dataset", ""), str):
            raise UserError(
                f"config.dataset is an object of type {type(given).__name__}; it must be a name, or a function of no "
                "arguments that returns arrays (the function itself, not what it returns)"
            )
        config.to_json()  # it is written to the workdir
    except (TypeError, ValueError) as error:
        raise UserError(f"--config is {name!r}, which has a value that is no JSON: {first_line(error)}") from error
    return Path(path).stem + (f"_{variant}" if variant else ""), config, function


def _take_function(config: ConfigDict, file: str) -> DataFunction | None:
    """The function that is a config's dataset, in whose place comes its name."""
    function = config.get("dataset")
    if not callable(function):
        return None
    module, name = (getattr(function, key, "") for key in ("__module__", "__qualname__"))
    name = f"{file if module == USER_CONFIG else module}.{name or type(function).__qualname__}()"
    with config.unlocked(), config.ignore_type():
        config.dataset = name
    return DataFunction(name, function)


def is_data_function(dataset: str) -> bool:
    """Whether this is what configs call a dataset that comes from a function."""
    return dataset.endswith("()")


def expanded(path: str) -> str:
    """A path as it was given, with the home directory for a leading `~`, which a shell leaves in `--flag=~/x`."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(f"path {path!r} begins with '~', for which there is no home directory") from error


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return expanded(argument)


def define_path(name: str, default: str | None, help: str, values: flags.FlagValues) -> None:
    """Define a flag whose value is a path (see `expanded`)."""
    flags.DEFINE(_PathParser(), name, default, help, flag_values=values, serializer=flags.ArgumentSerializer())


def parse_flags(argv: list[str], values: flags.FlagValues, positional: bool = False) -> list[str]:
    """Parse a program's own flags into `values`; returns the other arguments, which are refused unless `positional`."""
    values.set_gnu_getopt(True)  # flags may follow them
    try:
        _, *rest = values([sys.argv[0], *argv])
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"--{error.flagname} is no flag; a config's key is set with --config.KEY=VALUE") from error
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}; every argument is a --flag=value")
    return rest


def split_config_flags(argv: list[str]) -> tuple[str | None, dict[str, str], list[str]]:
    """Take `--config=NAME` and every `--config.KEY=VALUE` out of the arguments.

    Returns:
      NAME or None, the values by key, and the remaining arguments.
    """
    name, overrides, rest = None, {}, []
    arguments = iter(argv)
    for arg in arguments:
        flag, equals, value = arg.partition("=")
        key = flag.lstrip("-")
        if not (key == "config" or key.startswith("config.")) or not flag.startswith("-"):
            rest.append(arg)
            continue
        if not equals:
            value = next(arguments, "")
        if not value:
            raise UserError(f"{flag} is given without a value")
        if key == "config":
            name = value
        else:
            overrides[key.removeprefix("config.")] = value
    return name, overrides, rest


def override(config: ConfigDict, values: Mapping[str, str]) -> None:
    """Change keys of a config to values given as text."""
    for key, value in values.items():
        _override(config, key, value)


def _override(config: ConfigDict, key: str, value: str) -> None:
    keys = leaves(config)
    if key not in keys:
        inside = [k for k in keys if k.startswith(key + ".")]
        raise UserError(f"--config.{key} is not a key of the config; the keys are {', '.join(inside or keys)}")
    values = flags.FlagValues()
    argv = ["", f"--config.{key}={value}"]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=False, sys_argv=argv)
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        *parents, leaf = key.split(".")
        kind = functools.reduce(getattr, parents, config).get_type(leaf)
        raise UserError(f"--config.{key} is {value!r}; it must be of type {kind.__name__}") from error


def split_data_path(config: ConfigDict) -> None:
    """Where the dataset is a path to a .npz file, keep its name, and its directory as `data_dir`.

    For configs of the command line alone: a workdir says what a dataset is called, and not where files are read.

    Raises:
      UserError: if there is a `data_dir` too.
    """
    path = Path(str(config.dataset))
    if path.suffix == SUFFIX and path.name != str(path):
        if config.data_dir is not None:
            raise UserError(f"config.dataset is {config.dataset!r}, a path; config.data_dir says where it is already")
        config.dataset, config.data_dir = path.name, str(path.expanduser().parent)


def leaves(config: ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config's keys, those of nested configs with dots, and their values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
