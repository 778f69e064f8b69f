"""Convolution with gradients that are fast on a CPU.

XLA's CPU compiler runs a convolution whose dimensions are in its own order, (batch, *spatial, channels), on
fast kernels, but brings those of the gradients into that order outside loops only; in a training scan they were 5
to 20 times slower (jax issue 12868). Here the gradients are asked for in that order.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], ...]


def conv(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any) -> jax.Array:
    """Convolve, as `jax.lax.conv_general_dilated` does for a `flax.linen.Conv` without dilation or groups.

    Args:
      x: (batch, *spatial, channels).
      kernel: (*kernel_size, channels, features).
      strides: one for each spatial dimension.
      padding: "SAME", "VALID" or (low, high) for each spatial dimension.
      options: what `flax.linen.Conv` gives further; its precision is used.
    """
    spatial, size = x.shape[1:-1], kernel.shape[:-2]
    pairs = lax.padtype_to_pads(spatial, size, strides, padding) if isinstance(padding, str) else padding
    return _conv(x, kernel, tuple(strides), tuple(map(tuple, pairs)), options.get("precision"))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding, precision: Any) -> jax.Array:
    return _native(x, kernel, window_strides=strides, padding=padding, precision=precision)


def _native(x, kernel, padding, **options):
    last = x.ndim - 1
    order = (0, last, *range(1, last))
    numbers = lax.ConvDimensionNumbers(order, (last, last - 1, *range(last - 1)), order)
    strides = options.pop("window_strides", (1,) * (last - 1))
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, **options)


def _fwd(x, kernel, strides, padding, precision):
    return _conv(x, kernel, strides, padding, precision), (x, kernel)


def _bwd(strides, padding, precision, residuals, dy):
    def native(x, kernel, dy):
        run = partial(_native, window_strides=strides, padding=padding, precision=precision)
        return jax.vjp(run, x, kernel)[1](dy)

    def ordered(x, kernel, dy):
        axes = range(x.ndim - 2)
        sizes = list(zip(x.shape[1:-1], kernel.shape, dy.shape[1:-1], strides, padding, strict=False))
        # How far dy reaches when strides - 1 zeros stand between its values.
        reach = [(outputs - 1) * stride + 1 for _, _, outputs, stride, _ in sizes]
        pad_x = [(k - 1 - low, n - r + low) for (n, k, _, _, (low, _)), r in zip(sizes, reach, strict=True)]
        pad_kernel = [(low, k - 1 + r - n - low) for (n, k, _, _, (low, _)), r in zip(sizes, reach, strict=True)]
        turned = jnp.flip(kernel, axes).swapaxes(-1, -2)
        dx = _native(dy, turned, pad_x, lhs_dilation=strides, precision=precision)
        batch_last, batch_inside = jnp.moveaxis(dy, 0, -2), jnp.swapaxes(x, 0, -1)
        dkernel = _native(batch_inside, batch_last, pad_kernel, rhs_dilation=strides, precision=precision)
        return dx, jnp.moveaxis(dkernel, 0, -2)

    return lax.platform_dependent(*residuals, dy, cpu=ordered, default=native)


_conv.defvjp(_fwd, _bwd)
