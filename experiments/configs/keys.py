"""Declarations of config keys: a default and the allowed values."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from highway_jax.population.space import is_number

LARGEST = 10**9
LONGEST = 4096  # characters


class Key(NamedTuple):
    """A key of a config.

    Attributes:
      default: the value if a config does not set the key. If it is None, None is always allowed.
      read: `read(value)` returns the value as it is used, or raises ValueError, whose message completes "it must be".
      type: the type that ml_collections converts a command line's text to; `object` stands for any Python literal.
    """

    default: Any
    read: Callable[[Any], Any]
    type: type

    def checked(self, value: Any) -> Any:
        """A value as it is used, or None if the key may be None.

        Raises:
          ValueError: if the value is not allowed; the message completes "it must be".
        """
        return None if value is None and self.default is None else self.read(value)


Keys = Mapping[str, Key]  # by name, in nested configs with dots
Allowed = tuple[str, Callable[[float], bool]]  # the values that a number may have, in words and as a test


def config_of(keys: Keys, **values: Any) -> ConfigDict:
    """A config with the keys' defaults, except for the values given."""
    config = ConfigDict()
    for name, key in keys.items():
        *parents, leaf = name.split(".")
        place = config
        for parent in parents:
            if parent not in place:
                place[parent] = ConfigDict()
            place = place[parent]
        place[leaf] = FieldReference(key.default, field_type=key.type)
    with config.ignore_type():
        config.update(values)
    return config


def leaves(config: ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's values by key; the keys of nested configs have dots."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def integer(default: int | None, least: int, most: int = LARGEST) -> Key:
    """An integer from `least` to `most`; limits far above what can be trained catch typing errors."""

    def read(value: Any) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(f"an integer of at least {least}")
        if value > most:
            raise ValueError(f"an integer of at most {most}")
        return value

    return Key(default, read, object if default is None else int)


def number(default: float | None, meaning: str, allowed: Callable[[float], bool]) -> Key:
    """A number, finite in float32, that is `allowed`; `meaning` puts the condition into words."""

    def read(value: Any) -> float:
        if not _is(value, allowed):
            raise ValueError(f"a number {meaning}{', or None' * (default is None)}")
        return value

    return Key(default, read, object if default is None else float)


def span(default: Any, meaning: str, allowed: Callable[[float], bool]) -> Key:
    """The ends of a range, both `allowed`; a single number stands for both ends."""

    def read(value: Any) -> tuple[float, float]:
        ends = as_tuple(value)
        if len(ends) not in (1, 2) or not all(_is(end, allowed) for end in ends):
            raise ValueError(f"a range (low, high) of numbers, each {meaning}")
        if ends[0] > ends[-1]:
            raise ValueError("a range (low, high), with low at most high")
        return ends[0], ends[-1]

    return Key(default, read, tuple if isinstance(default, tuple) else object)


def truth(default: bool) -> Key:
    """True or False."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("True or False")
        return value

    return Key(default, read, bool)


def one_of(default: str, options: tuple[str, ...]) -> Key:
    """One of several strings."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            raise ValueError(f"one of {', '.join(options)}")
        return value

    return Key(default, read, str)


def some_of(default: tuple[str, ...], options: tuple[str, ...]) -> Key:
    """One or more of several strings, each at most once."""

    def read(value: Any) -> tuple[str, ...]:
        chosen = as_tuple(value)
        known = all(isinstance(name, str) and name in options for name in chosen)
        if not chosen or not known or len(set(chosen)) < len(chosen):
            raise ValueError(f"one or more of {', '.join(options)}, each once")
        return chosen

    return Key(default, read, tuple)


def text(default: str | None) -> Key:
    """Text that can be encoded as UTF-8 and is no longer than a path may be."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value or value != value.encode(errors="replace").decode():
            raise ValueError("text")
        if len(value) > LONGEST:
            raise ValueError(f"text of at most {LONGEST} characters")
        return value

    return Key(default, read, str)


def directory(default: str | None) -> Key:
    """An existing directory."""

    def read(value: Any) -> str:
        try:
            if Path(text(None).read(value)).expanduser().is_dir():
                return value
        except (OSError, ValueError, RuntimeError):  # not text, too long, a null byte, no such user
            pass
        raise ValueError("an existing directory")

    return Key(default, read, str)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Several values as a tuple, or a tuple of a single value."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _is(value: Any, allowed: Callable[[float], bool]) -> bool:
    """Whether a value is a number that is allowed once it is rounded to float32, where 0.99999999 is 1."""
    return is_number(value) and allowed(float(np.float32(value)))
