"""Pooling as in Caffe, where the authors' networks come from: the size of the output is rounded up.

The last windows of a row or column may reach beyond the image; what is beyond does not count.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array, window: tuple[int, int], stride: int) -> jax.Array:
    """Largest value of every window; a gradient goes to the first of equal ones, NaN is kept.

    Rows and columns are pooled one after the other with elementwise operations, which give the results and
    gradients of `jax.lax.reduce_window` exactly, several times faster on a CPU.

    Args:
      x: (batch, height, width, channels), no smaller than the window.
      window: height and width.
      stride: in both directions, at most the window.

    Returns:
      (batch, height', width', channels) with height' = ceil((height - window height) / stride) + 1.
    """
    # The innermost first, so that the first of equal values is the first in row-major order.
    for axis, size in (2, window[1]), (1, window[0]):
        n = x.shape[axis]
        extra = _beyond(n, size, stride)
        x = jnp.pad(x, [(0, extra if a == axis else 0) for a in range(4)], constant_values=-jnp.inf)
        last = n + extra - size + 1
        x = functools.reduce(_larger, [lax.slice_in_dim(x, i, last + i, stride, axis) for i in range(size)])
    return x


def avg_pool(x: jax.Array, window: tuple[int, int], stride: int) -> jax.Array:
    """Mean of every window, of what it has in the image; otherwise as `max_pool`."""
    padding = [(0, _beyond(n, size, stride)) for n, size in zip(x.shape[1:3], window, strict=True)]
    return nn.avg_pool(x, window, (stride, stride), padding, count_include_pad=False)


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    # Not jnp.maximum, which would share the gradient among equal values.
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _beyond(n: int, size: int, stride: int) -> int:
    """How far the last window reaches beyond n values."""
    return -(n - size) % stride
