"""Spaces of hyperparameters, as mappings from names to distributions."""

import functools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from highway_jax.files import first_line
from highway_jax.functional.activations import ACTIVATIONS, TracedActivation
from highway_jax.population.arguments import check_fits
from highway_jax.population.tracing import REMEMBERED, Traced, described

LARGEST = float(np.finfo(np.float32).max)
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Uniform:
    """A uniform distribution from `low` to `high`, in float32. Equal ends give a constant."""

    low: float
    high: float

    def __call__(self, key: jax.Array) -> jax.Array:
        """Draw a number with a random key."""
        return jax.random.uniform(key, (), jnp.float32, self.low, self.high)


@dataclass(frozen=True)
class LogUniform:
    """A log-uniform distribution from `low` to `high`, in float32. Equal ends give a constant."""

    low: float
    high: float

    def __call__(self, key: jax.Array) -> jax.Array:
        """Draw a number with a random key."""
        exponent = jax.random.uniform(key, (), jnp.float32, math.log(self.low), math.log(self.high))
        return jnp.clip(jnp.exp(exponent), self.low, self.high)  # exp(log(low)) can be less than low


@dataclass(frozen=True)
class Choice:
    """A uniform distribution over options, which draws the position of an option."""

    options: tuple[Any, ...]
    static: bool = False

    def __call__(self, key: jax.Array) -> jax.Array:
        """Draw the position of an option with a random key."""
        return jax.random.randint(key, (), 0, len(self.options), jnp.int32)

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """The traced value of each option: a number, or the index of an activation."""
        if all(map(_is_bool, self.options)):
            return np.array(self.options)
        if all(map(is_number, self.options)):
            whole = all(isinstance(option, numbers.Integral) for option in self.options)
            return np.array(self.options, np.int32 if whole else np.float32)
        return np.array([ACTIVATIONS.index(option) for option in self.options], np.int32)

    @functools.cached_property
    def of_activations(self) -> bool:
        """Whether the task receives a `TracedActivation`."""
        return not self.static and all(map(_is_activation, self.options))

    @functools.cached_property
    def table(self) -> np.ndarray:
        """The options as an array for tables, of a numeric or text dtype if possible."""
        numeric = all(map(is_number, self.options)) or all(map(_is_bool, self.options))
        if numeric and not self.static:
            return self.numbers
        if len({type(option) for option in self.options}) == 1 and type(self.options[0]) in (bool, int, float):
            return np.array(self.options)
        if all(isinstance(option, str) for option in self.options):
            return np.array(self.options)
        options = np.empty(len(self.options), object)
        options[:] = self.options
        return options


@dataclass(frozen=True)
class Grid(Choice):
    """All options in turn, each combined with the same draws of all other hyperparameters."""


def uniform(low: float, high: float) -> Uniform:
    """A number from a uniform distribution, in float32.

    Args:
      low: the lower end.
      high: the upper end, at least `low`.

    Raises:
      ValueError: if an end is not finite in float32, or `low` is above `high`.
    """
    _check_ends("uniform", low, high)
    return Uniform(float(low), float(high))


def log_uniform(low: float, high: float) -> LogUniform:
    """A number whose logarithm is uniformly distributed, in float32.

    Args:
      low: the lower end, above 0.
      high: the upper end, at least `low`.

    Raises:
      ValueError: if an end is not positive and finite in float32, or `low` is above `high`.
    """
    _check_ends("log_uniform", low, high)
    if not np.float32(low) > 0:
        raise ValueError(f"log_uniform({low!r}, {high!r}): both ends must be above 0")
    return LogUniform(float(low), float(high))


def choice(*options: Any, static: bool = False) -> Choice:
    """One of several options, each with the same probability.

    Args:
      *options: numbers; True and False; or names of activations, which the task receives as functions that the layers
        of this library accept as `activation`. With `static=True`, the options may be anything.
      static: whether the task receives the option itself instead of a traced value. A static option may decide shapes,
        structure or control flow in Python. Runs are grouped by it, and each group is compiled separately.

    Raises:
      ValueError: if there are no options, an option is repeated, or options that are not static are not of one of
        these kinds.

    Example:
      ```python
      space = {
          "batch_norm": population.choice(True, False, static=True),
          "activation": population.choice("relu", "tanh"),
          "width": population.choice(32, 64, 128, static=True),
      }
      ```
    """
    _check_options("choice", options, static)
    return Choice(tuple(options), static)


def grid(*options: Any, static: bool = False) -> Grid:
    """Every one of several options, each with the same draws of all other hyperparameters.

    Options are thus compared under equal conditions; the runs of one draw also start from the same random key. A space
    with several grids has every combination of their options. A space of grids and constants only gives a grid search.

    Args:
      *options: as for `choice`.
      static: as for `choice`.

    Raises:
      ValueError: as for `choice`.

    Example:
      Twenty learning rates, each with both kinds of network:

      ```python
      space = {
          "lr": population.log_uniform(1e-3, 1),
          "kind": population.grid("highway", "plain", static=True),
      }
      population.fit(task, space, num_runs=40, ...)
      ```
    """
    _check_options("grid", options, static)
    return Grid(tuple(options), static)


class Space:
    """A space of hyperparameters. `fit` accepts a plain mapping and makes a `Space` from it.

    Args:
      entries: a mapping from names to distributions (`uniform`, `log_uniform`, `choice`, or any function of a random
        key that returns a scalar), to a `grid`, or to NumPy or JAX arrays with a value for every configuration.
        Anything else is a constant, which the task receives as it is.

    Attributes:
      entries: the mapping.
      names: the names of all hyperparameters, in order.
      points: the number of points of the grid, which is the number of configurations that share one draw; 1 without a
        grid.

    Raises:
      TypeError: if a name is not a string, or an entry is a list, range or set.
    """

    def __init__(self, entries: Mapping[str, Any]):
        if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
            raise TypeError(f"space is {entries!r}; it must be a mapping from names to distributions")
        for name, entry in entries.items():
            if isinstance(entry, list | range | set):
                raise TypeError(
                    f"space[{name!r}] is a {type(entry).__name__}; choice(*{entry!r}) draws one of its values, "
                    "numpy.array gives every configuration its own, and a tuple is a constant"
                )
            if isinstance(entry, np.generic) and is_number(entry):
                _canonical(f"space[{name!r}]", entry)
        self.entries = dict(entries)
        self.names = tuple(self.entries)
        self.points = math.prod(len(entry.options) for entry in self.entries.values() if isinstance(entry, Grid))

    def draw(self, key: jax.Array, configurations: np.ndarray) -> Columns:
        """Draw configurations, each from the key and its own number only.

        The i-th name draws from the i-th key, so a name that is appended does not change the draws of the others. The
        points of a grid are consecutive configurations with the same draw of everything else; the last grid varies
        fastest.

        Args:
          key: the random key of the population's runs.
          configurations: (n,) the numbers of the configurations.

        Returns:
          Values by name, each of shape (n,), without the constants; those of a `Choice` are positions.

        Raises:
          ValueError: if an array is too short, or a distribution does not draw a scalar.
          TypeError: if an array does not hold numbers, or a distribution fails.
        """
        grids = {name: entry for name, entry in self.entries.items() if isinstance(entry, Grid)}
        drawn = {name: entry for name, entry in self.entries.items() if callable(entry) and name not in grids}
        keys = [self.names.index(name) for name in drawn]

        def one(key: jax.Array, configuration: jax.Array) -> dict[str, jax.Array]:
            own = jax.random.split(jax.random.fold_in(key, configuration))[0]
            own = jax.random.split(own, len(self.names))
            return {name: _drawn(name, entry, own[i]) for i, (name, entry) in zip(keys, drawn.items(), strict=True)}

        numbered = np.asarray(configurations, np.int32)
        traced = Traced(one, key, jax.ShapeDtypeStruct((), jnp.int32))
        for name, shape in traced.shapes.items():
            if shape.shape:
                raise ValueError(f"space[{name!r}] draws an array of shape {shape.shape}; it must draw a scalar")
        columns = jax.device_get(_mapped(traced)(key, numbered // self.points)) if drawn else {}
        place = numbered % self.points
        for name, entry in reversed(grids.items()):
            place, columns[name] = np.divmod(place, np.int32(len(entry.options)))
        for name in self.names:
            if isinstance(array := self.entries[name], np.ndarray | jax.Array):
                if array.ndim == 0 or len(array) <= numbered.max():
                    raise ValueError(
                        f"space[{name!r}] is an array of shape {array.shape}; it must have a value for each of "
                        f"{numbered.max() + 1} configurations"
                    )
                if np.asarray(array).dtype.kind not in "biuf":
                    raise TypeError(f"space[{name!r}] is an array of {array.dtype}; it must be of numbers")
                columns[name] = _canonical(f"space[{name!r}]", array)[numbered]
        return {name: columns[name] for name in self.names if name in columns}

    def described(self) -> dict[str, list[str]]:
        """The options and constants as text that is equal in every process."""
        fixed = {
            name: entry.options if isinstance(entry, Choice) else (entry,)
            for name, entry in self.entries.items()
            if isinstance(entry, Choice) or not (callable(entry) or isinstance(entry, np.ndarray | jax.Array))
        }
        return {name: list(map(described, options)) for name, options in fixed.items()}

    @functools.cached_property
    def activations(self) -> frozenset[str]:
        """The names of the hyperparameters that choose an activation, whose traced values are indices."""
        return frozenset(name for name, e in self.entries.items() if isinstance(e, Choice) and e.of_activations)

    def positions(self, values: Mapping[str, Any]) -> Columns:
        """Convert values as shown in a table to columns: those of a `Choice` become positions.

        Raises:
          ValueError: if the space does not have a name or an option.
        """
        columns = {}
        for name, column in values.items():
            if name not in self.entries:
                raise ValueError(f"there is no hyperparameter {name!r}; the space has {', '.join(self.names)}")
            entry = self.entries[name]
            if isinstance(entry, Choice):
                columns[name] = np.array([_position(name, entry, value) for value in column], np.int32)
            elif callable(entry) or isinstance(entry, np.ndarray | jax.Array):
                columns[name] = _canonical(name, np.asarray(column))
        return columns

    def traced(self, columns: Columns) -> Columns:
        """The traced values of configurations: numbers, and indices of activations."""
        values = {}
        for name, column in columns.items():
            entry = self.entries[name]
            if isinstance(entry, Choice):
                if not entry.static:
                    values[name] = entry.numbers[column]
            else:
                values[name] = column
        return values

    def groups(self, columns: Columns, rows: np.ndarray) -> np.ndarray:
        """(rows,) the group of each row, as the number (from 0) of its combination of static values."""
        numbers = np.zeros(len(rows), int)
        for name, options in self._static_choices.items():
            numbers = numbers * len(options) + columns[name][rows]
        return numbers

    def static(self, group: int) -> dict[str, Any]:
        """The ordinary Python values that a group's configurations share: static choices and constants."""
        chosen = {}
        for name, options in reversed(self._static_choices.items()):
            group, position = divmod(group, len(options))
            chosen[name] = options[position]
        constants = {
            name: entry
            for name, entry in self.entries.items()
            if not callable(entry) and not isinstance(entry, np.ndarray | jax.Array)
        }
        return chosen | constants

    @functools.cached_property
    def _static_choices(self) -> dict[str, tuple[Any, ...]]:
        return {name: e.options for name, e in self.entries.items() if isinstance(e, Choice) and e.static}

    def readable(self, columns: Columns, count: int) -> Columns:
        """`count` configurations as shown in a table: options of choices, and also constant numbers and text."""
        values = {}
        for name, entry in self.entries.items():
            if isinstance(entry, Choice):
                values[name] = entry.table[columns[name]]
            elif name in columns:
                values[name] = columns[name]
            elif is_number(entry) or isinstance(entry, str | bool):
                values[name] = np.full(count, entry)
        return values


def _drawn(name: str, distribution: Callable[[jax.Array], Any], key: jax.Array) -> jax.Array:
    try:
        return jnp.asarray(distribution(key))
    except Exception as error:
        raise TypeError(
            f"space[{name!r}] is called with a random key, as a distribution, and fails: {first_line(error)}; to give "
            "the task a function itself, make it choice(..., static=True)"
        ) from error


@functools.lru_cache(maxsize=REMEMBERED)
def _mapped(traced: Traced) -> Callable[..., Any]:
    return jax.jit(lambda key, configurations: lax.map(functools.partial(traced, key), configurations))


@jax.tree_util.register_pytree_node_class
class Hyperparameters(dict):
    """The hyperparameters of a run by name, a dict whose `KeyError` lists the names that exist.

    It is a JAX pytree, so that it can be passed to a jitted function; anything in it that is not an array is static.

    Args:
      values: the hyperparameters by name.
      read: a set to which the names that are read are added; by default a new one.

    Attributes:
      read: the names that have been read.
    """

    def __init__(self, values: Mapping[str, Any], read: set[str] | None = None):
        super().__init__(values)
        self.read = set() if read is None else read

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        """As of a dict. Overriding it makes `**hp` and `hp | {...}` read through `__getitem__`."""
        return super().__iter__()

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        self.read.add(name)
        return super().setdefault(name, default)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"hp has no attribute {name!r}; a hyperparameter is hp[{name!r}]")

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        self.read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        """As of a dict."""
        self.read.add(name)
        return super().pop(name, *default)

    def items(self) -> Any:
        """As of a dict."""
        self.read.update(self)
        return super().items()

    def values(self) -> Any:
        """As of a dict."""
        self.read.update(self)
        return super().values()

    def tree_flatten(self) -> tuple[list[Any], Any]:
        """The traced values as children, everything else as static data."""
        arrays = jax.Array | np.ndarray | np.generic | TracedActivation
        traced = {name: value for name, value in self.items() if isinstance(value, arrays)}
        rest = tuple((name, self[name]) for name in self if name not in traced)
        return list(traced.values()), (tuple(self), rest)

    @classmethod
    def tree_unflatten(cls, structure: Any, traced: Any) -> "Hyperparameters":
        """The inverse of `tree_flatten`."""
        (names, rest), values = structure, iter(traced)
        static = dict(rest)
        return cls({name: static[name] if name in static else next(values) for name in names})

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"there is no hyperparameter {name!r}; the space has {', '.join(self)}")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def is_number(value: Any) -> bool:
    """Whether a value is a number that is finite in float32; True and False are not numbers."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and -LARGEST <= value <= LARGEST


def _is_activation(value: Any) -> bool:
    return isinstance(value, str) and value in ACTIVATIONS


def _check_options(name: str, options: tuple[Any, ...], static: bool) -> None:
    if not options:
        raise ValueError(f"{name}() has no options; it must have at least one")
    if len(options) == 1 and isinstance(options[0], list | range | set | np.ndarray | jax.Array | Choice):
        raise ValueError(f"{name}({options[0]!r}) has one option; give the options one by one: {name}(*options)")
    for position, option in enumerate(options):
        if any(option is earlier or _equal(option, earlier) for earlier in options[:position]):
            raise ValueError(f"{name}: the option {option!r} is given twice")
        if not static and isinstance(option, numbers.Integral) and not -(2**31) <= int(option) < 2**31:
            raise ValueError(f"{name}: the option {option!r} is not a 32-bit integer; give a float, or static=True")
    if not static and not any(all(map(kind, options)) for kind in (_is_bool, is_number, _is_activation)):
        raise ValueError(
            f"{name}: the options {', '.join(map(repr, options))} are given to the task as numbers, so they must be "
            f"finite numbers, True and False, or names of activations ({', '.join(map(repr, ACTIVATIONS))}); "
            "static=True gives it the option itself"
        )


def _check_ends(name: str, low: Any, high: Any) -> None:
    with np.errstate(over="ignore"):
        fits = is_number(low) and is_number(high) and np.isfinite(np.float32(high) - np.float32(low))
    if not fits:
        raise ValueError(f"{name}({low!r}, {high!r}): both ends must be numbers, finite in float32")
    if low > high:
        raise ValueError(f"{name}({low!r}, {high!r}) is inverted; low must not be above high")


def _canonical(name: str, values: Any) -> np.ndarray:
    """Convert an array to the dtype that JAX gives it, rejecting numbers that this dtype cannot hold."""
    check_fits(name, values)
    with np.errstate(over="ignore"):
        canonical = np.asarray(values, jax.dtypes.canonicalize_dtype(values.dtype))
    if (strange := np.isfinite(values) & ~np.isfinite(canonical)).any():
        raise ValueError(f"{name} has {np.asarray(values)[strange][0]}, which does not fit into {canonical.dtype}")
    return canonical


def _equal(a: Any, b: Any) -> bool:
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # comparing arrays gives more than one truth value
        return False


def _position(name: str, entry: Choice, value: Any) -> int:
    options = list(enumerate(entry.options))
    for position, option in options:
        if option is value:
            return position
    for position, option in [*enumerate(entry.table), *options]:
        if np.shape(option) == np.shape(value) and bool(np.all(option == value)):
            return position
    raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, entry.options))}")
