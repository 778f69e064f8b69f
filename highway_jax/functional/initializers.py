"""Initial values: normalized weights, and transform gates biased to carry."""

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, glorot_uniform, he_normal

from highway_jax.functional.activations import RELU, TANH, Activation, canonical


def normalized(activation: Activation) -> Initializer:
    """Initializer that preserves variance through an activation (Section 3.1, refs [16] and [17]).

    Glorot's uniform for tanh, He's normal for relu and for other functions (modern ones are
    rectifiers at heart). A traced index selects between the two.
    """
    choice = canonical(activation)
    if callable(choice):
        choice = TANH if choice in (jnp.tanh, jax.nn.tanh) else RELU

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        glorot, he = (make()(key, shape, dtype) for make in (glorot_uniform, he_normal))
        return jnp.where(jnp.equal(choice, TANH), glorot, he)

    return init


def constant(value: float | jax.Array) -> Initializer:
    """Initializer that fills with one value, which may be traced (a run's `transform_bias`)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jnp.full(shape, value, dtype)

    return init


def column_blocks(kernel: Initializer, parts: int) -> Initializer:
    """Initializer of `parts` equal kernels stored side by side, each drawn as if it stood alone."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        one = (*shape[:-1], shape[-1] // parts)
        return jnp.concatenate([kernel(k, one, dtype) for k in jax.random.split(key, parts)], axis=-1)

    return init


def layerwise(layer: Initializer) -> Initializer:
    """Initializer of a stack: the leading axis counts layers, each drawn as if it stood alone."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.vmap(lambda k: layer(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return init
