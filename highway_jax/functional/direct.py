"""Convolutions of images and convolutional highway layers by this library's CPU kernels (direct.cc).

The machine's compiler builds the kernels on first use, in seconds (see `highway_jax.native`).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from highway_jax.native import Library, for_cpu

__all__ = ["Geometry", "computes", "convolve", "highway", "is_sharded", "library"]

Convolution = Callable[[jax.Array, jax.Array], jax.Array]
Affine = tuple[jax.Array, jax.Array]  # kernel and bias
Layer = Callable[[jax.Array, Affine, Affine, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution of images, each as a pair for height and width.

    Attributes:
      image: the size of x in pixels.
      window: the size of the kernel in pixels.
      strides: the distances between windows.
      padding: the numbers of zeros before and after the pixels.
    """

    image: Pair
    window: Pair
    strides: Pair
    padding: tuple[Pair, Pair]

    @property
    def output(self) -> Pair:
        """The size of y in pixels, which is below 1 if the window does not fit."""
        sizes = zip(self.image, self.padding, self.window, self.strides, strict=True)
        rows, columns = ((n + sum(pads) - window) // stride + 1 for n, pads, window, stride in sizes)
        return rows, columns

    @property
    def is_product(self) -> bool:
        """Whether y is the matrix product of the pixels with the kernel."""
        return (self.window, self.strides, self.padding) == ((1, 1), (1, 1), ((0, 0), (0, 0)))

    @property
    def transposed_padding(self) -> tuple[Pair, Pair]:
        """The padding of the transposed convolution, from y's pixels, `strides` apart, to an output of x's size."""
        sizes = zip(self.image, self.padding, self.window, self.strides, self.output, strict=True)
        rows, columns = ((window - 1 - low, n + low - 1 - (m - 1) * stride) for n, (low, _), window, stride, m in sizes)
        return rows, columns


def convolve(x: jax.Array, kernel: jax.Array, geometry: Geometry, otherwise: Convolution) -> jax.Array:
    """Convolve images with direct.cc on a CPU, and with another function elsewhere and in exported programs.

    Derivatives of any order exist in both modes.

    Args:
      x: the images, `(batch, *image, channels)`, float32.
      kernel: the kernel, `(*window, channels, features)`, float32.
      geometry: the sizes, for which `computes` must hold.
      otherwise: a hashable function of x and kernel that computes the same.

    Returns:
      The output, `(batch, *output, features)`, float32.

    Raises:
      Unavailable: if it is lowered for a CPU for which the kernels cannot be built.
    """
    return _part("y", {"x": x, "kernel": kernel}, geometry=geometry, otherwise=otherwise)


def highway(
    x: jax.Array, h: Affine, t: Affine, activation: jax.Array, geometry: Geometry, otherwise: Layer
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute a convolutional highway layer (Eq. 1 and 3) with direct.cc on a CPU, and with another function elsewhere.

    The forward and the backward pass are one call each. There is no forward mode, and gradients have no further
    derivatives.

    Args:
      x: the images, `(batch, *image, channels)`, float32.
      h: the kernel of H, `(*window, channels, channels)`, and its bias, `(channels,)`, float32.
      t: the kernel and the bias of T, of the same shapes.
      activation: an index into `highway_jax.functional.activations.ACTIVATIONS`, int32.
      geometry: the sizes, for which `computes` must hold, with an output of the image's size.
      otherwise: a hashable function of x, h, t and activation that computes the same.

    Returns:
      The output, H(x) and T(x), each of x's shape. `otherwise` computes gradients that flow through the latter two.

    Raises:
      Unavailable: if it is lowered for a CPU for which the kernels cannot be built.
    """
    return _highway(geometry, otherwise, x, h, t, activation)


def computes(geometry: Geometry, x: jax.Array, kernel: jax.Array, *others: jax.Array) -> bool:
    """Whether the kernels can compute a convolution.

    All arrays must be in float32 and not empty, the kernel must have x's channels, and the padding must be neither
    negative nor wider than a window allows. The types of the arrays must not mention devices, as they do with explicit
    shardings and in a `jax.shard_map` that checks its results.
    """
    arrays = x, kernel, *others
    pads = (*sum(geometry.padding, ()), *sum(geometry.transposed_padding, ()))
    sizes = (*geometry.output, *(size for array in arrays for size in array.shape))
    if x.shape[-1] != kernel.shape[-2] or any(is_sharded(array) or _is_varying(array) for array in arrays):
        return False
    return {array.dtype for array in arrays} == {jnp.dtype(jnp.float32)} and min(pads) >= 0 and min(sizes) > 0


def is_sharded(array: jax.Array) -> bool:
    """Whether the type of an array says how devices divide it, as in a mesh with explicit axes."""
    return any(axis is not None for axis in jax.typeof(array).sharding.spec)


def _is_varying(array: jax.Array) -> bool:
    """Whether the type of an array says that its values differ between devices, as in a checking `jax.shard_map`."""
    return bool(jax.typeof(array).manual_axis_type.varying)


def library() -> Library:
    """The library of kernels for this machine's CPU; loading it builds the kernels if necessary."""
    names = "", "_kernel", "_forward", "_backward"
    return for_cpu(Path(__file__).with_suffix(".cc"), *(f"highway_convolution{name}" for name in names))


# A convolution and its two gradients are the three parts of one trilinear form of x, the kernel and the cotangent of y.
# Each part leaves one of the three out and is linear in the other two. So the derivatives of each part are the other
# parts.

ARGUMENTS = ("x", "kernel", "y")

_primitive = Primitive("convolution_part")
_primitive.def_impl(partial(xla.apply_primitive, _primitive))


def _part(out: str, operands: dict[str, jax.Array], **params: Any) -> jax.Array:
    """Compute the part without the argument `out`, whose shape it has. Arrays may have leading dimensions for runs."""
    return _primitive.bind(*(operands[name] for name in _operands(out)), out=out, **params)


def _operands(out: str) -> list[str]:
    return [name for name in ARGUMENTS if name != out]


def _named(out: str, operands: Any) -> dict[str, Any]:
    return dict(zip(_operands(out), operands, strict=True))


@_primitive.def_abstract_eval
def _shape(*operands, out, geometry, **_):
    shapes = {name: operand.shape for name, operand in _named(out, operands).items()}
    match out:
        case "x":
            shape = (*shapes["y"][:-3], *geometry.image, shapes["kernel"][-2])
        case "kernel":
            shape = (*shapes["x"][:-4], *geometry.window, shapes["x"][-1], shapes["y"][-1])
        case _:
            shape = (*shapes["x"][:-3], *geometry.output, shapes["kernel"][-1])
    return jax.core.ShapedArray(shape, operands[0].dtype)


def _transpose(index, cotangent, *operands, out, **params):
    known = _named(out, operands)
    target = _operands(out)[index]
    return _part(target, {out: cotangent, **known}, **params)


ad.defbilinear(_primitive, partial(_transpose, 0), partial(_transpose, 1))


def _batch(operands, axes, *, out, **params):
    mapped = _named(out, axes)
    if mapped.get("kernel", 0) is None:  # a kernel shared by all runs, which become one larger batch
        known = _named(out, operands)
        name = next(name for name in known if name != "kernel")
        images = jnp.moveaxis(known[name], mapped[name], -5)
        runs, batch = images.shape[-5:-3]
        known[name] = images.reshape(*images.shape[:-5], runs * batch, *images.shape[-3:])
        result = _part(out, known, **params)
        return result.reshape(*result.shape[:-4], runs, batch, *result.shape[-3:]), result.ndim - 4
    return _primitive.bind(*_in_front(operands, axes), out=out, **params), 0


def _in_front(operands, axes):
    """Move the mapped axis of each operand to the front, adding one where there is none."""
    runs = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
    return [
        jnp.broadcast_to(operand, (runs, *operand.shape)) if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    ]


batching.primitive_batchers[_primitive] = _batch


def _elsewhere(*operands, out, geometry, otherwise):
    """Compute a part with `otherwise` only."""
    if operands[0].ndim > 4:
        return jax.vmap(partial(_elsewhere, out=out, geometry=geometry, otherwise=otherwise))(*operands)
    known = _named(out, operands)
    if out == "y":
        return otherwise(**known)
    others = {name: value for name, value in known.items() if name != "y"}
    zeros = jnp.zeros(_shape(*operands, out=out, geometry=geometry).shape, operands[0].dtype)
    return jax.vjp(lambda value: otherwise(**others, **{out: value}), zeros)[1](known["y"])[0]


def _lower(context, *operands, out, geometry, otherwise):
    sizes = {"window": geometry.window, "strides": geometry.strides, "padding": geometry.padding}
    if out == "kernel":
        return _call("highway_convolution_kernel", context, operands, sizes)
    if out == "x":
        sizes |= {"strides": (1, 1), "dilation": geometry.strides, "padding": geometry.transposed_padding}
    else:
        sizes |= {"dilation": (1, 1)}
    return _call("highway_convolution", context, operands, sizes, flipped=np.bool_(out == "x"))


def _call(name: str, context: Any, operands: Any, sizes: dict[str, Any], **attributes: Any) -> Any:
    library().load()
    arrays = {name: np.array(size, np.int64).ravel() for name, size in sizes.items()}
    axes = context.module_context.axis_context
    devices = axes.mesh.size if hasattr(axes, "mesh") else axes.num_devices
    sharing = np.int64(-(-devices // jax.process_count()))  # the devices that share the threads of this process
    return jax.ffi.ffi_lowering(name)(context, *operands, devices=sharing, **arrays, **attributes)


def _register(primitive: Primitive, elsewhere: Callable[..., Any], on_cpu: Callable[..., Any]) -> None:
    """Register the lowerings of a primitive: a kernel on a CPU, JAX's functions elsewhere."""
    by_jax = mlir.lower_fun(elsewhere, primitive.multiple_results)

    def lower(context, *operands, **params):
        exported = context.module_context.lowering_parameters.for_export  # it cannot contain kernels
        return (by_jax if exported else on_cpu)(context, *operands, **params)

    mlir.register_lowering(primitive, by_jax)
    mlir.register_lowering(primitive, lower, platform="cpu")


_register(_primitive, _elsewhere, _lower)


# A highway layer, forward and backward.


def _layer_primitive(name, shapes, elsewhere, on_cpu):
    """Make the primitive of a layer's forward or backward pass. Arrays may have leading dimensions for runs."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(
        lambda *operands, **_: [jax.core.ShapedArray(shape, jnp.float32) for shape in shapes(*operands)]
    )

    def by_jax(*operands, **params):
        function = partial(elsewhere, **params)
        for _ in operands[0].shape[:-4]:
            function = jax.vmap(function)
        return function(*operands)

    def batch(operands, axes, **params):
        found = primitive.bind(*_in_front(operands, axes), **params)
        return found, [0] * len(found)

    batching.primitive_batchers[primitive] = batch
    _register(primitive, by_jax, on_cpu)
    return primitive


def _forward_elsewhere(x, h_kernel, h_bias, t_kernel, t_bias, activation, *, otherwise, **_):
    return otherwise(x, (h_kernel, h_bias), (t_kernel, t_bias), activation)


def _backward_elsewhere(dy, x, h, t, h_kernel, h_bias, t_kernel, t_bias, activation, *, otherwise, **_):
    def output(*args):
        return otherwise(*args, activation)[0]

    dx, dh, dt = jax.vjp(output, x, (h_kernel, h_bias), (t_kernel, t_bias))[1](dy)
    return dx, *dh, *dt


def _forward_on_cpu(context, *operands, geometry, **_):
    sizes = {"window": geometry.window, "padding": geometry.padding}
    return _call("highway_convolution_forward", context, operands, sizes)


def _backward_on_cpu(context, *operands, geometry, **_):
    sizes = {"window": geometry.window, "padding": geometry.padding, "transposed": geometry.transposed_padding}
    return _call("highway_convolution_backward", context, operands, sizes)


_forward = _layer_primitive(
    "highway_convolution_forward", lambda x, *_: [x.shape] * 3, _forward_elsewhere, _forward_on_cpu
)
_backward = _layer_primitive(
    "highway_convolution_backward",
    lambda dy, x, h, t, *weights: [x.shape, *(weight.shape for weight in weights[:4])],
    _backward_elsewhere,
    _backward_on_cpu,
)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _highway(geometry, otherwise, x, h, t, activation):
    return tuple(_forward.bind(x, *h, *t, activation, geometry=geometry, otherwise=otherwise))


def _highway_fwd(geometry, otherwise, *args):
    args = jax.tree.map(lambda arg: arg.value, args)
    states = _highway(geometry, otherwise, *args)
    return states, (*args, states[1:])


def _highway_bwd(geometry, otherwise, kept, cotangents):
    x, h, t, activation, states = kept
    if all(isinstance(cotangent, SymbolicZero) for cotangent in cotangents[1:]):
        operands = cotangents[0], x, *states, *h, *t, activation
        dx, *weights = _backward.bind(*operands, geometry=geometry, otherwise=otherwise)
        return dx, tuple(weights[:2]), tuple(weights[2:]), None
    given = [jnp.zeros(c.shape, c.dtype) if isinstance(c, SymbolicZero) else c for c in cotangents]
    return *jax.vjp(lambda *args: otherwise(*args, activation), x, h, t)[1](tuple(given)), None


_highway.defvjp(_highway_fwd, _highway_bwd, symbolic_zeros=True)
