"""Functions as the jaxprs that they are traced to: two that compute the same are equal, and share what is compiled."""

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

REMEMBERED = 16  # compiled functions of a kind: a process that traces the same again compiles nothing
# Whose parameters are for differentiation, which is over where a task has been traced.
RULES = ("custom_jvp_call", "custom_vjp_call")


class Traced:
    """Pure functions with their jaxprs; equal to any others of the same jaxprs and constants.

    Args:
      functions: the functions, in any form.
      jaxprs: what they were traced to. They are held, so that no other object gets the address of one that they name.
    """

    def __init__(self, functions: Any, *jaxprs: ClosedJaxpr):
        self.functions, self.jaxprs = functions, jaxprs

    @functools.cached_property
    def fingerprint(self) -> str:
        """What is computed, in 32 characters; within this process, in which addresses tell functions apart."""
        return self._digest(repr)

    def digest(self) -> str:
        """What is computed, in 32 characters, the same in every process; callbacks are not told apart."""
        return self._digest(lambda part: re.sub(r"0x[0-9a-f]+", "", repr(part)))

    def _digest(self, written: Callable[[Any], str]) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        with np.printoptions(threshold=sys.maxsize):
            for jaxpr in self.jaxprs:
                for piece in _pieces(jaxpr, written):
                    digest.update(piece)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _pieces(jaxpr: ClosedJaxpr | Jaxpr, written: Callable[[Any], str]) -> Iterator[bytes | memoryview]:
    """All that a jaxpr and those inside it say. Its text would not do: it depends on what JAX has cached so far.

    Args:
      jaxpr: the jaxpr.
      written: the text of a parameter or a literal.
    """
    if isinstance(jaxpr, ClosedJaxpr):
        for constant in jaxpr.consts:
            array = np.asarray(jax.random.key_data(constant) if _is_key(constant) else constant)
            yield f"{array.dtype.str} {array.shape}".encode()
            yield np.ascontiguousarray(array).data
        jaxpr = jaxpr.jaxpr
    numbers: dict[Any, int] = {}

    def named(atom: Any) -> str:
        if isinstance(atom, Literal):
            return f"{written(atom.val)}:{atom.aval}"
        return f"{numbers.setdefault(atom, len(numbers))}:{atom.aval}"

    yield repr([named(atom) for atom in (*jaxpr.constvars, *jaxpr.invars)]).encode()
    for equation in jaxpr.eqns:
        yield f"{equation.primitive} {[named(atom) for atom in (*equation.invars, *equation.outvars)]}".encode()
        for name, value in sorted(equation.params.items()):
            for part in jax.tree.leaves(value, is_leaf=lambda part: isinstance(part, ClosedJaxpr | Jaxpr)):
                if isinstance(part, ClosedJaxpr | Jaxpr):
                    yield from _pieces(part, written)
                elif equation.primitive.name not in RULES:
                    yield f"{name} {written(part)}".encode()
    yield repr([named(atom) for atom in jaxpr.outvars]).encode()


def _is_key(constant: Any) -> bool:
    return isinstance(constant, jax.Array) and jax.dtypes.issubdtype(constant.dtype, jax.dtypes.prng_key)
