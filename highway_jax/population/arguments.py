"""Checks of arguments, whose errors name the argument in one line."""

import inspect
import numbers
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def checked_integer(name: str, value: Any, least: int) -> int:
    """Return an argument as a Python integer.

    Raises:
      ValueError: if it is not an integer, is less than `least`, or does not fit into 32 bits.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not least <= int(value) < 2**31:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")
    return int(value)


def set_integer(owner: Any, name: str, least: int, optional: bool = False) -> None:
    """Check an attribute of a frozen dataclass and make it a Python integer; an optional one may be None."""
    value = getattr(owner, name)
    if value is not None or not optional:
        object.__setattr__(owner, name, checked_integer(name, value, least))


def check_fits(name: str, value: Any) -> None:
    """Reject an array that JAX would silently change: a masked one, or integers that do not fit into 32 bits."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask JAX does not know; filled(...) makes an ordinary one")
    dtype = jax.dtypes.canonicalize_dtype(value.dtype)
    if dtype == value.dtype or not np.issubdtype(dtype, np.integer) or not value.size:
        return
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    for strange in (number for number in (value.min(), value.max()) if not least <= number <= most):
        raise ValueError(f"{name} has {strange}, which does not fit into {dtype}")


def check_is(name: str, value: Any, kind: Any, allowed: str) -> None:
    """Reject an argument that is not an instance of `kind`, which `allowed` describes in words."""
    if not isinstance(value, kind) or isinstance(value, type):
        raise TypeError(f"{name} is {shown(value)}; it must be {allowed}")


def check_function(name: str, value: Any, *arguments: str, hp: bool = False) -> None:
    """Reject anything but a function of these arguments in this order; with `hp`, it may take an argument `hp` too."""
    wanted = f"a function of ({', '.join(arguments)})" + ", and of hp if it has an argument of that name" * hp
    if not callable(value):
        raise TypeError(f"{name} is {shown(value)}; it must be {wanted}")
    try:
        signature = inspect.signature(value)
    except ValueError:  # some functions written in C have no signature
        return
    try:
        bound = signature.bind(*arguments, **{"hp": None} if hp and takes_hp(value) else {}).arguments
        fits = all(given == name for name, given in bound.items() if name in arguments)
    except TypeError:
        fits = False
    if not fits:
        raise TypeError(f"{name} takes {signature}; it must be {wanted}")


def takes_hp(function: Callable[..., Any]) -> bool:
    """Whether a function has an argument that can be given as `hp=`."""
    try:
        takes: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    except ValueError:
        return False
    return "hp" in takes and takes["hp"].kind is not inspect.Parameter.POSITIONAL_ONLY


def shown(value: Any) -> str:
    """Show a value in one short line: plain values as they are, anything else by its type."""
    if isinstance(value, str | bytes | bool | numbers.Number | type | None):
        return reprlib.repr(value)
    return f"an object of type {type(value).__name__}"
