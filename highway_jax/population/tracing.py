"""Traced functions, which are compared and compiled by their jaxprs; equal ones share a compiled program."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from highway_jax.keys import is_key

REMEMBERED = 16  # compiled programs to keep, so that tracing the same function again compiles nothing
# Primitives whose parameters matter only for differentiation, which a traced function has already done.
RULES = ("custom_jvp_call", "custom_vjp_call")
PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Traced:
    """A function of trees of arrays, traced for certain shapes and dtypes. It is called like the function itself.

    Two are equal if their jaxprs are equal, including all constants and parameters, and if their arguments and results
    have equal structures. It keeps all objects that its jaxpr refers to alive, because objects without a hash are
    compared by their addresses.

    Args:
      function: a pure function.
      *arguments: the shapes and dtypes of its arguments.

    Attributes:
      shapes: the shapes and dtypes of its result.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._jaxpr, self.shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        self._inputs: Any
        self._inputs, self._outputs = jax.tree.structure(arguments), jax.tree.structure(self.shapes)

    def takes(self, *arguments: Any) -> bool:
        """Whether it can be called with these arguments."""
        leaves, structure = jax.tree.flatten(arguments)
        forms = [(aval.shape, aval.dtype) for aval in self._jaxpr.in_avals]
        return bool(structure == self._inputs) and [(leaf.shape, leaf.dtype) for leaf in leaves] == forms

    def __call__(self, *arguments: Any) -> Any:
        """Call the traced function.

        Raises:
          TypeError: if the arguments have other shapes, dtypes or structures.
        """
        if not self.takes(*arguments):
            raise TypeError("called with arguments of another form than it was traced with")
        leaves = jax.tree.leaves(arguments)
        return jax.tree.unflatten(self._outputs, jaxpr_as_fun(self._jaxpr)(*leaves))

    @functools.cached_property
    def _pieces(self) -> tuple[Any, ...]:
        return (_Same(self._inputs), _Same(self._outputs), *_pieces(self._jaxpr))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced) and self._pieces == other._pieces

    def __hash__(self) -> int:
        return hash(self._pieces)

    def digest(self) -> str:
        """A digest of what is computed, 32 characters that are equal in every process.

        It does not distinguish callbacks and other functions of the same name.
        """
        text = "\n".join(map(_text, self._pieces))
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class _Same:
    """An object that is equal to equal objects of the same type, or only to itself if it has no hash."""

    def __init__(self, value: Any):
        self.value = value
        try:
            self.hash = hash((type(value), value))
        except TypeError:
            self.hash = id(value)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or self.hash != other.hash:
            return False
        return self.value is other.value or (type(self.value) is type(other.value) and bool(self.value == other.value))


def _pieces(jaxpr: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """Yield the contents of a jaxpr and of those nested in it, in comparable pieces.

    The text of a jaxpr would not do: it omits constants, and it depends on JAX's caches.
    """
    if isinstance(jaxpr, ClosedJaxpr):
        yield from map(_exact, jaxpr.consts)
        jaxpr = jaxpr.jaxpr
    numbers: dict[Any, int] = {}

    def named(atom: Any) -> tuple[Any, ...]:
        kind = (str(atom.aval), getattr(atom.aval, "weak_type", False))
        return (*kind, _exact(atom.val) if isinstance(atom, Literal) else numbers.setdefault(atom, len(numbers)))

    yield tuple(map(named, (*jaxpr.constvars, *jaxpr.invars)))
    for equation in jaxpr.eqns:
        context = equation.ctx
        yield (
            equation.primitive.name,
            tuple(map(named, (*equation.invars, *equation.outvars))),
            _text(_Same((context.compute_type, context.threefry_partitionable, context.xla_metadata))),
        )
        for name, value in sorted(equation.params.items()):
            leaves, structure = jax.tree.flatten(value, is_leaf=lambda part: isinstance(part, ClosedJaxpr | Jaxpr))
            for part in leaves:
                if isinstance(part, ClosedJaxpr | Jaxpr):
                    yield from _pieces(part)
                elif equation.primitive.name not in RULES:
                    yield name, _exact(part)
            yield str(structure)
    yield tuple(map(named, jaxpr.outvars))


def described(value: Any) -> str:
    """Describe a value by text that is equal in every process."""
    return _text(_exact(value))


def _exact(part: Any) -> Any:
    """Represent an array by its contents, a plain value by its `repr`, and anything else by the object."""
    if is_key(part):
        return str(part.dtype), *_exact(jax.random.key_data(part))
    if isinstance(part, np.ndarray | np.generic | jax.Array):
        array = np.asarray(part)
        return array.dtype.name, array.shape, hashlib.md5(array.tobytes(), usedforsecurity=False).hexdigest()
    return (type(part).__name__, repr(part)) if isinstance(part, PLAIN) else _Same(part)


def _text(piece: Any) -> str:
    """The text of a piece that is equal in every process: without addresses, and with sets sorted."""
    if isinstance(piece, tuple):
        return f"({' '.join(map(_text, piece))})"
    text = re.sub(r"0x[0-9a-f]+", "", repr(piece.value if isinstance(piece, _Same) else piece))
    return re.sub(r"set\(\{([^{}]*)\}\)", lambda match: f"set({sorted(match[1].split(', '))})", text)
