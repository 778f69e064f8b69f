"""Convolution with gradients that are fast on a CPU.

XLA's CPU compiler has fast kernels for convolutions in its native order of dimensions, `(batch, *spatial, channels)`.
It brings gradients into this order only outside of loops; in a training scan, they were 5 to 20 times slower (JAX issue
12868). Here, the tangents are written so that their transposes, the gradients, are in native order.
"""

import contextlib
import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from highway_jax.functional import direct
from highway_jax.functional.activations import Activation, canonical, indexed
from highway_jax.functional.direct import Affine
from highway_jax.functional.ops import highway
from highway_jax.native import check_implementation

# `lax.conv_general_dilated` with everything but the two arrays and the order of their dimensions bound.
Convolution = Callable[..., jax.Array]


def conv(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    dimension_numbers: Any = None,
    out_sharding: Any = None,
    implementation: str = "xla",
    **options: Any,
) -> jax.Array:
    """Convolve like `jax.lax.conv_general_dilated`, by default with channels last; Flax's `Conv` accepts it.

    It takes all options of `conv_general_dilated`, and has derivatives of any order in both modes. With channels last
    and without explicit shardings, gradients are fast in a loop on a CPU. Forward mode and higher orders are as slow
    there as JAX's own gradients.

    Args:
      lhs: the input, `(batch, *spatial, channels)`.
      rhs: the kernel, `(*kernel_size, channels, features)`.
      window_strides: as in `jax.lax.conv_general_dilated`.
      padding: as in `jax.lax.conv_general_dilated`.
      dimension_numbers: as in `jax.lax.conv_general_dilated`; channels are last by default.
      out_sharding: as in `jax.lax.conv_general_dilated`.
      implementation: "xla", or "fused" for the kernels of `functional.direct`. These compute convolutions of float32
        images on a CPU without groups and dilation; XLA computes everything else. Devices that share a batch then each
        compute the whole batch.
      **options: further options of `jax.lax.conv_general_dilated`.

    Returns:
      The output, `(batch, *spatial', features)`.

    Raises:
      ValueError: if the implementation is unknown.
      native.Unavailable: if "fused" is lowered for a CPU for which the kernels cannot be built.

    Example:
      ```python
      layer = nn.Conv(32, (3, 3), conv_general_dilated=conv)
      ```
    """
    check_implementation(implementation)
    run: Convolution = partial(lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)
    numbers = native = _numbers(lhs.ndim)
    if dimension_numbers is not None:
        numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if numbers != native or out_sharding is not None or direct.is_sharded(lhs) or direct.is_sharded(rhs):
        return run(lhs, rhs, dimension_numbers=numbers, out_sharding=out_sharding)
    geometry = _geometry(lhs, rhs, window_strides, padding, options)
    if implementation == "fused" and geometry and direct.computes(geometry, lhs, rhs):
        return direct.convolve(lhs, rhs, geometry, _ByXla(geometry, options.get("precision")))
    if geometry and geometry.is_product and lhs.dtype == rhs.dtype:
        return lax.dot_general(lhs, rhs[0, 0], (((3,), (0,)), ((), ())), options.get("precision"))
    return _conv(run, lhs, rhs)


def _geometry(lhs, rhs, strides, padding, options):
    """The geometry of a convolution of images without groups and dilation; None for any other convolution."""
    known = {"precision", "batch_group_count", "feature_group_count", "lhs_dilation", "rhs_dilation"}
    groups = [options.get(f"{name}_group_count", 1) for name in ("batch", "feature")]
    dilations = [*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())]
    if lhs.ndim != 4 or any(options[name] is not None for name in options.keys() - known):
        return None
    if not all(isinstance(size, int) for size in (*lhs.shape, *rhs.shape)) or {*groups, *dilations} != {1}:
        return None
    image, window = lhs.shape[1:3], rhs.shape[:2]
    if len(strides) != 2:
        return None
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image, window, strides, padding)
    if np.shape(padding) != (2, 2):
        return None
    (top, bottom), (left, right) = padding
    return direct.Geometry(image, window, tuple(strides), ((top, bottom), (left, right)))


@dataclasses.dataclass(frozen=True)
class _ByXla:
    geometry: direct.Geometry
    precision: Any

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        run: Convolution = partial(
            lax.conv_general_dilated,
            window_strides=self.geometry.strides,
            padding=self.geometry.padding,
            precision=self.precision,
        )
        return _conv(run, x, kernel)


@functools.cache
def implemented(implementation: str) -> Convolution:
    """Return `conv` with an implementation, "xla" or "fused", for a Flax `Conv`.

    Raises:
      ValueError: if the implementation is unknown.
    """
    check_implementation(implementation)
    return conv if implementation == "xla" else partial(conv, implementation=implementation)


def window(kernel_size: Any) -> tuple[int, ...]:
    """Convert the kernel size of a layer to a tuple with one integer per spatial dimension.

    Raises:
      ValueError: if it is not a sequence of positive integers.
    """
    with contextlib.suppress(TypeError):  # not iterable, or not integers
        size = tuple(map(operator.index, kernel_size))
        if size and min(size) > 0:
            return size
    raise ValueError(
        f"kernel_size is {kernel_size!r}; it must be a positive integer for each spatial dimension, such as (3, 3)"
    )


def centered(kernel_size: Sequence[int]) -> list[tuple[int, int]]:
    """Return the zero-padding that centers receptive fields on the positions 0, stride, 2 * stride, ... of the input.

    With a stride of 1, it equals "SAME"; with any other stride, "SAME" would shift the receptive fields.
    """
    return [((size - 1) // 2, size // 2) for size in window(kernel_size)]


def fused_highway(
    x: jax.Array, h: Affine, t: Affine, activation: Activation
) -> tuple[jax.Array, jax.Array, jax.Array] | None:
    """Compute a convolutional highway layer with coupled gates, with one kernel forward and one backward.

    There is no forward mode, and gradients have no further derivatives.

    The kernels cannot compute a layer if JAX's default device is not a CPU, the input is not a batch of float32 images,
    the arrays have other shapes, or the activation is a function.

    Args:
      x: the input, `(batch, *spatial, channels)`.
      h: the kernel of H, `(*kernel_size, channels, channels)`, and its bias, `(channels,)`.
      t: the kernel and the bias of T, of the same shapes.
      activation: see `highway_jax.functional.activations`.

    Returns:
      The output, H(x) and T(x), each of x's shape, or None if the kernels cannot compute the layer.
    """
    choice, kernel, weights = canonical(activation), h[0], (*h, *t)
    geometry = _geometry(x, kernel, (1, 1), centered(kernel.shape[:-2]), {}) if kernel.ndim == 4 else None
    if callable(choice) or geometry is None or jax.devices()[0].platform != "cpu":
        return None
    shape = (*kernel.shape[:2], x.shape[-1], x.shape[-1])
    if [array.shape for array in weights] != [shape, shape[-1:]] * 2 or not direct.computes(geometry, x, *weights):
        return None
    return direct.highway(x, h, t, jnp.asarray(choice, jnp.int32), geometry, _highway_of_two)


def _highway_of_two(x, h, t, activation):
    """The same layer as two convolutions and the highway operation."""

    def affine(kernel, bias):
        strides, padding = (1,) * (x.ndim - 2), centered(kernel.shape[:-2])
        return conv(x, kernel, strides, padding, implementation="fused") + bias

    states = indexed(affine(*h), activation), jax.nn.sigmoid(affine(*t))
    return highway(x, *states), *states


def _numbers(ndim: int) -> lax.ConvDimensionNumbers:
    """The native order of dimensions: `(batch, *spatial, channels)` and `(*kernel_size, channels, features)`."""
    last = ndim - 1
    order = (0, last, *range(1, last))
    return lax.ConvDimensionNumbers(order, (last, last - 1, *range(last - 1)), order)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _conv(run: Convolution, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return run(lhs, rhs, dimension_numbers=_numbers(lhs.ndim))


def _jvp(run, primals, tangents):
    lhs, rhs = primals
    dlhs, drhs = tangents

    def either(*args, **platforms):
        # With the checkpoint, the backward pass reorders the arrays, which are not kept in both orders.
        default = partial(_conv, run)
        return jax.checkpoint(partial(lax.platform_dependent, default=default, **platforms), prevent_cse=False)(*args)

    terms = []
    if not isinstance(dlhs, SymbolicZero):
        terms.append(either(dlhs, rhs, cpu=partial(_of_lhs, run)))
    if not isinstance(drhs, SymbolicZero):
        tpu = {"tpu": partial(_of_windows, run)} if _is_thin(run, lhs) else {}
        terms.append(either(lhs, drhs, cpu=partial(_of_rhs, run), **tpu))
    return _conv(run, lhs, rhs), reduce(jnp.add, terms)


_conv.defjvp(_jvp, symbolic_zeros=True)


# The transpose of a convolution for lhs exchanges the orders of lhs and output, and features with channels in that of
# rhs. The transpose for rhs exchanges the orders of rhs and output, and the first two dimensions of all three: batch
# with channels, or features with channels.


def _of_lhs(run: Convolution, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The same convolution, with a transpose for `lhs` in native order."""
    order, (features, channels, *size), _ = _numbers(lhs.ndim)
    numbers = lax.ConvDimensionNumbers(order, (channels, features, *size), order)
    return run(lhs, rhs.swapaxes(-1, -2), dimension_numbers=numbers)


def _of_rhs(run: Convolution, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The same convolution, with a transpose for `rhs` in native order."""
    (batch, channels, *spatial), (features, inner, *size), _ = _numbers(lhs.ndim)
    order = (channels, batch, *spatial)
    numbers = lax.ConvDimensionNumbers(order, order, (inner, features, *size))
    y = run(lhs.swapaxes(0, -1), jnp.moveaxis(rhs, -2, 0), dimension_numbers=numbers)
    return jnp.moveaxis(y, -2, 0)


THIN = 8  # with fewer channels, a TPU's compiler may take over a minute for the gradient of a float32 kernel


def _is_thin(run: Convolution, lhs: jax.Array) -> bool:
    """Whether `_of_windows` is used: for few channels, without groups and dilated inputs."""
    options = run.keywords  # type: ignore[attr-defined]
    groups = options.get("feature_group_count", 1), options.get("batch_group_count", 1)
    return lhs.shape[-1] < THIN and groups == (1, 1) and set(options.get("lhs_dilation") or (1,)) == {1}


def _of_windows(run: Convolution, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The same convolution, as a product of all windows with the kernel."""
    options = run.keywords  # type: ignore[attr-defined]
    (batch, *spatial, channels), size = lhs.shape, rhs.shape[:-2]
    strides, padding = options["window_strides"], options["padding"]
    dilation = options.get("rhs_dilation") or (1,) * len(size)
    reach = [1 + step * (count - 1) for step, count in zip(dilation, size, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(spatial, reach, strides, padding)
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)])
    if any(n < r for n, r in zip(padded.shape[1:-1], reach, strict=True)):
        return run(lhs, rhs, dimension_numbers=_numbers(lhs.ndim))  # no window fits
    spans = [1 + (n - r) // s * s for n, r, s in zip(padded.shape[1:-1], reach, strides, strict=True)]
    places = itertools.product(*(range(0, r, step) for r, step in zip(reach, dilation, strict=True)))
    windows = [
        lax.slice(padded, (0, *first, 0), (batch, *map(operator.add, first, spans), channels), (1, *strides, 1))
        for first in places
    ]
    names = "precision", "preferred_element_type"
    return lax.dot_general(
        jnp.concatenate(windows, axis=-1),
        rhs.reshape(-1, rhs.shape[-1]),
        (((lhs.ndim - 1,), (0,)), ((), ())),
        **{name: options[name] for name in names if name in options},
    )
