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

Activation = str | int | jax.Array | Callable[[jax.Array], jax.Array]


def canonical(activation: Activation) -> Any:
    """Turn any accepted form into an index (an int or a traced integer scalar) or a function.

    Raises ValueError for an unknown name and for an index outside `ACTIVATIONS`, unless that is an array.
    """
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
    """Apply the nonlinearity elementwise; same shape and dtype as `z`."""
    choice = canonical(activation)
    if callable(choice):
        return choice(z)
    return jnp.where(jnp.equal(choice, RELU), jax.nn.relu(z), jnp.tanh(z))


def slope(h: jax.Array, activation: int | jax.Array) -> jax.Array:
    """Derivative of relu or tanh, from its *output* `h`: backward passes need not keep the input."""
    return jnp.where(jnp.equal(activation, RELU), (h > 0).astype(h.dtype), 1 - h * h)
