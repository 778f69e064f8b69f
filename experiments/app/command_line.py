"""The programs' flags."""

import sys
from pathlib import Path

from absl import flags

from experiments.app.errors import UserError


def expanded(path: str) -> str:
    """A path with a leading `~` replaced by the home directory; a shell does not expand it in `--flag=~/x`."""
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
    """Parse a program's own flags into `values`; returns the other arguments, which only `positional` allows."""
    values.set_gnu_getopt(True)  # flags may follow other arguments
    try:
        _, *rest = values([sys.argv[0], *argv])
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"--{error.flagname} is not a flag; set a key of the config with --config.KEY=VALUE") from error
    except RecursionError as error:  # from absl's search for similar names
        raise UserError("an argument is not a flag, and too long to be one") from error
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}; every argument must be a --flag=value")
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
            raise UserError(f"{flag} has no value; write {flag}=VALUE")
        if key == "config":
            name = value
        else:
            overrides[key.removeprefix("config.")] = value
    return name, overrides, rest
