"""Initializers: normalized weights, and transform gates that are biased towards carrying."""

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, glorot_uniform, he_normal

from highway_jax.functional.activations import RELU, TANH, Activation, canonical


def normalized(activation: Activation) -> Initializer:
    """Return an initializer that preserves the variance through an activation (Section 3.1, refs [16] and [17]).

    It is Glorot's uniform initializer for tanh, and He's normal initializer for relu and all other functions, most of
    which resemble relu. A traced index selects between the two.
    """
    choice = canonical(activation)
    if callable(choice):
        choice = TANH if choice in (jnp.tanh, jax.nn.tanh) else RELU

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        glorot, he = (make()(key, shape, dtype) for make in (glorot_uniform, he_normal))
        return jnp.where(jnp.equal(choice, TANH), glorot, he)

    return init


def constant(value: float | jax.Array) -> Initializer:
    """Return an initializer that fills an array with one value, which may be traced (a run's `transform_bias`)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jnp.full(shape, value, dtype)

    return init


def column_blocks(kernel: Initializer, parts: int) -> Initializer:
    """Return an initializer for `parts` kernels of equal shape side by side, each drawn as if it were alone."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        one = (*shape[:-1], shape[-1] // parts)
        return jnp.concatenate([kernel(k, one, dtype) for k in jax.random.split(key, parts)], axis=-1)

    return init


def layerwise(layer: Initializer) -> Initializer:
    """Return an initializer for a stack whose leading axis counts layers, each drawn as if it were alone."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.vmap(lambda k: layer(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return init
