"""The nonlinearity of a layer: a name, a function, or an index that may be traced.

A population trains relu and tanh networks in one compiled program, so there the choice is data: an
integer array indexing `ACTIVATIONS`. Computing both and selecting is far cheaper than a branch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

ACTIVATIONS = ("relu", "tanh")
RELU, TANH = range(len(ACTIVATIONS))

Function = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_pytree_node_class
class TracedActivation:
    """One of `ACTIVATIONS`, by an index that may be traced: a function, and an activation for every layer here.

    It is what a task gets of `population.choice("relu", "tanh")`. Which of the two it is decides no branch of Python.

    Attributes:
      index: an integer scalar.

    Example:

        x = hp["activation"](nn.Dense(50)(x))
    """

    def __init__(self, index: int | jax.Array):
        self.index = index

    def __call__(self, z: jax.Array) -> jax.Array:
        return activate(z, self.index)

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(self.index)

    def __eq__(self, other: Any) -> Any:
        """Whether the index equals another.

        Raises:
          TypeError: for text, which an index never equals.
        """
        if isinstance(other, str):
            raise TypeError(f"a traced activation is an index, which cannot be compared with {other!r}")
        return self.index == getattr(other, "index", other)

    __hash__ = None  # type: ignore[assignment]

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        """The index."""
        return (self.index,), None

    @classmethod
    def tree_unflatten(cls, structure: None, children: tuple[Any]) -> "TracedActivation":
        """The inverse."""
        return cls(*children)


Activation = str | int | jax.Array | TracedActivation | Function


def canonical(activation: Activation) -> Any:
    """Turn any accepted form into an index (an int or a traced integer scalar) or a function.

    Raises ValueError for an unknown name and for an index outside `ACTIVATIONS`, unless that is an array.
    """
    if isinstance(activation, TracedActivation):
        return activation.index
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}; it must be one of {', '.join(map(repr, ACTIVATIONS))}, or a function"
            )
        return ACTIVATIONS.index(activation)
    if callable(activation) or isinstance(activation, jax.Array):  # an array's value may not be known yet
        return activation
    if activation not in range(len(ACTIVATIONS)):
        raise ValueError(f"activation is {activation}; as an index it must be 0 to {len(ACTIVATIONS) - 1}")
    return activation


def activate(z: jax.Array, activation: Activation) -> jax.Array:
    """Apply an activation elementwise; same shape and dtype as `z`.

    Args:
      z: any array.
      activation: "relu", "tanh", a function, or an index into `ACTIVATIONS`, which may be traced.

    Raises:
      ValueError: for an unknown name or index.
    """
    choice = canonical(activation)
    if callable(choice):
        return choice(z)
    return jnp.where(jnp.equal(choice, RELU), jax.nn.relu(z), jnp.tanh(z))


# With backward passes that keep nothing but the output, for the cells of deep stacks.


@jax.custom_vjp
def indexed(z: jax.Array, index: int | jax.Array) -> jax.Array:
    """`ACTIVATIONS[index]` of `z`, elementwise."""
    return activate(z, index)


@jax.custom_vjp
def gate(z: jax.Array) -> jax.Array:
    """The logistic sigmoid of `z`, elementwise: a gate's activity from its pre-activation."""
    return jax.nn.sigmoid(z)


def _indexed_fwd(z, index):
    h = activate(z, index)
    return h, (h, index)


def _indexed_bwd(residuals, dy):
    h, index = residuals
    return dy * jnp.where(jnp.equal(index, RELU), (h > 0).astype(h.dtype), 1 - h * h), None


def _gate_fwd(z):
    t = jax.nn.sigmoid(z)
    return t, t


def _gate_bwd(t, dy):
    return (dy * t * (1 - t),)


indexed.defvjp(_indexed_fwd, _indexed_bwd)
gate.defvjp(_gate_fwd, _gate_bwd)
