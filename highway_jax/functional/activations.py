"""Activations of layers, given by name, as a function, or as an index that may be traced.

A population trains relu and tanh networks in one compiled program. There, the choice is data: an integer array that
indexes `ACTIVATIONS`. Computing both and selecting one is far cheaper than a branch.
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
    """One of `ACTIVATIONS`, given by an index that may be traced.

    It is a function, and every layer of this library accepts it as `activation`. A task receives it for
    `population.choice("relu", "tanh")`. Since its index is traced, Python code cannot branch on it.

    Attributes:
      index: an integer scalar.

    Example:
      ```python
      x = hp["activation"](nn.Dense(50)(x))
      ```
    """

    def __init__(self, index: int | jax.Array):
        self.index = index

    def __call__(self, z: jax.Array) -> jax.Array:
        """Apply the activation elementwise."""
        return activate(z, self.index)

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(self.index)

    def __eq__(self, other: Any) -> Any:
        """Whether the index equals another one.

        Raises:
          TypeError: if `other` is a string, which an index never equals.
        """
        if isinstance(other, str):
            raise TypeError(f"a traced activation is an index, which cannot be compared with {other!r}")
        return self.index == getattr(other, "index", other)

    __hash__ = None  # type: ignore[assignment]

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        """The index as the only child."""
        return (self.index,), None

    @classmethod
    def tree_unflatten(cls, structure: None, children: tuple[Any]) -> "TracedActivation":
        """The inverse of `tree_flatten`."""
        return cls(*children)


Activation = str | int | jax.Array | TracedActivation | Function


def canonical(activation: Activation) -> Any:
    """Convert an activation to an index (an int or a traced integer scalar) or to a function.

    Raises:
      ValueError: if a name is unknown, or an index that is not an array is out of range.
    """
    if isinstance(activation, TracedActivation):
        return activation.index
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}; it must be one of {', '.join(map(repr, ACTIVATIONS))}, or a function"
            )
        return ACTIVATIONS.index(activation)
    if callable(activation) or isinstance(activation, jax.Array):  # an array may be traced, so it is not checked
        return activation
    if activation not in range(len(ACTIVATIONS)):
        raise ValueError(f"activation is {activation}; as an index it must be 0 to {len(ACTIVATIONS) - 1}")
    return activation


def activate(z: jax.Array, activation: Activation) -> jax.Array:
    """Apply an activation elementwise.

    Args:
      z: an array of any shape.
      activation: "relu", "tanh", a function, or an index into `ACTIVATIONS`, which may be traced.

    Returns:
      An array of the shape and dtype of `z`.

    Raises:
      ValueError: if the name or the index is unknown.

    Example:
      ```python
      y = highway_jax.activate(x, "tanh")
      ```
    """
    choice = canonical(activation)
    if callable(choice):
        return choice(z)
    return jnp.where(jnp.equal(choice, RELU), jax.nn.relu(z), jnp.tanh(z))


# The same functions with backward passes that keep only the output, for the cells of deep stacks.


@jax.custom_vjp
def indexed(z: jax.Array, index: int | jax.Array) -> jax.Array:
    """Apply `ACTIVATIONS[index]` elementwise."""
    return activate(z, index)


@jax.custom_vjp
def gate(z: jax.Array) -> jax.Array:
    """Apply the logistic sigmoid elementwise, which gives a gate's activity from its pre-activation."""
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
