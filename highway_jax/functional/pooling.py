"""Pooling as in Caffe, which the authors used: the size of the output is rounded up.

The last windows of a row or column may extend beyond the image. Only the part inside the image counts.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array, window: tuple[int, int], stride: int) -> jax.Array:
    """Take the maximum of each window.

    The gradient goes to the first of several equal values, and NaN is propagated. Columns and rows are pooled one after
    the other with elementwise operations. Results and gradients are exactly those of `jax.lax.reduce_window`, but
    several times faster on a CPU.

    Args:
      x: (batch, height, width, channels), at least as large as the window.
      window: height and width of the window.
      stride: the stride in both directions, at most the size of the window.

    Returns:
      (batch, height', width', channels) with height' = ceil((height - window height) / stride) + 1.
    """
    # The innermost axis comes first, so that the first of equal values is the first in row-major order.
    for axis, size in (2, window[1]), (1, window[0]):
        n = x.shape[axis]
        extra = _beyond(n, size, stride)
        x = jnp.pad(x, [(0, extra if a == axis else 0) for a in range(4)], constant_values=-jnp.inf)
        last = n + extra - size + 1
        x = functools.reduce(_larger, [lax.slice_in_dim(x, i, last + i, stride, axis) for i in range(size)])
    return x


def avg_pool(x: jax.Array, window: tuple[int, int], stride: int) -> jax.Array:
    """Take the mean of each window over its pixels inside the image; arguments and shapes are as in `max_pool`."""
    padding = [(0, _beyond(n, size, stride)) for n, size in zip(x.shape[1:3], window, strict=True)]
    return nn.avg_pool(x, window, (stride, stride), padding, count_include_pad=False)


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    # jnp.maximum would divide the gradient among equal values.
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _beyond(n: int, size: int, stride: int) -> int:
    """How far the last window extends beyond n values."""
    return -(n - size) % stride
