"""Functions as the jaxprs that they are traced to: two that compute the same are equal, and share what is compiled."""

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

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
        return self._digest(lambda equation: "" if equation.primitive.name in RULES else repr(_parts(equation)))

    def digest(self) -> str:
        """What is computed, in 32 characters, the same in every process; callbacks are not told apart."""
        return self._digest(lambda equation: "")

    def _digest(self, told: Callable[[JaxprEqn], str]) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        with np.printoptions(threshold=sys.maxsize):
            for closed in self.jaxprs:
                digest.update(str(closed).encode())
                for part in _walk(closed):
                    if isinstance(part, JaxprEqn):
                        digest.update(told(part).encode())
                        continue
                    array = np.asarray(jax.random.key_data(part) if _is_key(part) else part)
                    digest.update(f"{array.dtype.str} {array.shape}".encode())
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _walk(jaxpr: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """The constants and equations of a jaxpr and of those inside it."""
    if isinstance(jaxpr, ClosedJaxpr):
        yield from jaxpr.consts
        jaxpr = jaxpr.jaxpr
    for equation in jaxpr.eqns:
        yield equation
        for part in _parts(equation, inner=True):
            yield from _walk(part)


def _parts(equation: JaxprEqn, inner: bool = False) -> list[Any]:
    """An equation's parameters that are no jaxprs, or those that are."""
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda part: isinstance(part, ClosedJaxpr | Jaxpr))
    return [leaf for leaf in leaves if isinstance(leaf, ClosedJaxpr | Jaxpr) is inner]


def _is_key(constant: Any) -> bool:
    return isinstance(constant, jax.Array) and jax.dtypes.issubdtype(constant.dtype, jax.dtypes.prng_key)
