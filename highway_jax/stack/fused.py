"""Kernels for deep stacks of highway and plain layers, on a CPU (fused.cc) and on an NVIDIA GPU (fused.cu).

The machine's compiler builds them on first use, in seconds: a C++ compiler for a CPU, and nvcc for a GPU, which
`pip install 'jax[cuda13]'` includes. `highway_jax.stack` computes the same with XLA.
"""

import contextlib
import importlib.util
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from highway_jax.native import Library, NoCompiler, Unavailable, for_cpu
from highway_jax.stack import kinds as blocks
from highway_jax.stack.kinds import Kind

__all__ = [
    "NoCompiler", "Unavailable", "backward", "check", "choose", "dot_general", "forward", "here", "library", "load",
    "supports", "usable",
]  # fmt: skip

CPU, GPU = "cpu", "cuda"
WIDEST: Mapping[str, int] = {CPU: 128, GPU: 80}
"""The largest width at which `choose` selects the kernel, by platform.

On a CPU, XLA's products, which are tuned for all caches and cores, are mostly as fast or faster for larger widths. On a
GPU, a layer must fit into the shared memory of a multiprocessor.
"""

HANDLERS = ("highway_forward", "highway_backward")  # on both platforms
PRODUCTS = ("highway_product", "highway_gradient")  # on a CPU only

# The sizes of a block on a GPU, as in fused.cu.
THREADS = 256
THREAD_ROWS = 4  # examples of a thread
MOST_ROWS = 128
# Compute capabilities with too little shared memory: a block needs up to 148 KB.
SMALL = ("8.6", "8.9", "12.0", "12.1")


def supports(kind: Kind) -> bool:
    """Whether the kernels can compute a kind of layer."""
    return kind in (blocks.HIGHWAY, blocks.PLAIN)


def here() -> str | None:
    """The platform of JAX's default device, "cpu" or "cuda", or None if there is no kernel for it."""
    if jax.devices()[0].platform == "cpu":
        return CPU
    return GPU if _capability() else None


def load(platform: str = CPU) -> None:
    """Load the kernel for a platform, building it if necessary, and register it with XLA.

    A process tries this once and remembers the outcome.

    Args:
      platform: "cpu" or "cuda".

    Raises:
      Unavailable: if there is no compiler that can build the kernel, or no folder to keep it in (see
        `native.Library.path`); on "cuda" also if there is no such device, or its shared memory is too small.
    """
    library(platform).load()


def choose(width: int) -> str:
    """Choose the implementation for JAX's default device and a width.

    Returns:
      "fused" if the kernel is fast for this width and can be built, otherwise "xla".
    """
    platform = here()
    return "fused" if platform and usable(platform, width) else "xla"


def usable(platform: str, width: int) -> bool:
    """Whether a platform's kernel should compute layers of this width; if so, it is loaded."""
    if platform != here() or width > WIDEST[platform]:
        return False
    with contextlib.suppress(Unavailable):
        load(platform)
        return True
    return False


def library(platform: str = CPU) -> Library:
    """The library with the kernel for a platform; loading it builds the kernel if necessary.

    Raises:
      Unavailable: on "cuda", if there is no such device, or its shared memory is too small.
    """
    source = Path(__file__)
    if platform == CPU:
        return for_cpu(source.with_suffix(".cc"), *HANDLERS, *PRODUCTS)
    capability = _capability()
    if not capability:
        raise Unavailable(f"JAX's default device is not an NVIDIA GPU: {jax.devices()[0].device_kind}")
    if int(capability.split(".")[0]) < 8 or capability in SMALL:
        raise Unavailable(f"its shared memory is too small: {jax.devices()[0].device_kind}")
    target = f"-arch=sm_{capability.replace('.', '')}"
    options = "-std=c++17", "-O3", target, "-Xcompiler=-fPIC,-w", "-w"
    return Library(source.with_suffix(".cu"), HANDLERS, "CUDA", _nvcc(), options, b"")


def _capability() -> str:
    """The compute capability of JAX's default device, such as "9.0", or "" if it is not an NVIDIA GPU."""
    found = str(getattr(jax.devices()[0], "compute_capability", ""))
    return found if re.fullmatch(r"\d+\.\d+", found) else ""


def _nvcc() -> tuple[str, ...]:
    """The places to look for CUDA's compiler: the PATH, then NVIDIA's package that is installed with JAX."""
    found = importlib.util.find_spec("nvidia")
    places = found.submodule_search_locations if found else None
    return "nvcc", *(str(path) for place in places or () for path in sorted(Path(place).glob("cu*/bin/nvcc")))


def check(kind: Kind, x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: jax.Array) -> None:
    """Reject stacks that the kernel cannot compute.

    Raises:
      ValueError: if the kind, the shapes or the dtypes are not supported.
    """
    if not supports(kind):
        raise ValueError("implementation is 'fused'; it computes coupled highway and plain layers, and no others")
    width, parts = x.shape[-1] if x.ndim == 2 else 0, len(kind.biases(0.0))
    fit = kernel.ndim == 3 and kernel.shape[1:] == (width, parts * width) and bias.shape == kernel.shape[::2]
    if not width or not fit or activation.ndim:
        raise ValueError(
            f"implementation is 'fused'; it needs x (batch, width), kernel (layers, width, {parts} * width), "
            f"bias (layers, {parts} * width) and one activation, but got {x.shape}, {kernel.shape}, {bias.shape} "
            f"and {activation.shape}"
        )
    if {x.dtype, kernel.dtype, bias.dtype} != {jnp.dtype(jnp.float32)}:
        raise ValueError(
            f"implementation is 'fused'; it computes in float32, but got {x.dtype}, {kernel.dtype} and {bias.dtype}"
        )


def forward(
    platform: str, x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: jax.Array, keep: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Compute the forward pass of a stack of highway layers, or of plain layers if the kernel is square.

    Arguments are not checked.

    Args:
      platform: "cpu" or "cuda".
      x: the input, `(batch, width)`.
      kernel: `(layers, width, width)`, or `(layers, width, 2 * width)` with the columns of H before those of T.
      bias: `(layers, width)` or `(layers, 2 * width)`.
      activation: an index into `highway_jax.functional.activations.ACTIVATIONS`, int32.
      keep: whether to keep what a backward pass needs; it must be True on a CPU.

    Returns:
      The output, `(batch, width)`, and what `backward` needs. All arrays are float32.

    Raises:
      Unavailable: if it is lowered for a platform for which the kernel cannot be built.
    """
    (batch, width), (layers, _, side) = x.shape, kernel.shape
    states = 2 * side // width - 1  # x, and h and t of a highway layer
    rows, tiles = _tiles(platform, batch, width, side)
    kept = (layers + 1, states, width, rows * tiles) if keep else (0,)
    return _call("highway_forward", platform, rows, [x.shape, kept], x, kernel, bias, _needed.bind(activation))


def backward(
    platform: str, dy: jax.Array, kernel: jax.Array, activation: jax.Array, kept: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the backward pass of a stack (Eq. 9 and the chain rule).

    Args:
      platform: as for `forward`.
      dy: the cotangent of the output, `(batch, width)`.
      kernel: as for `forward`.
      activation: as for `forward`.
      kept: the second result of `forward`.

    Returns:
      The cotangents of x, kernel and bias.
    """
    batch, width = dy.shape
    rows, tiles = _tiles(platform, batch, width, kernel.shape[-1])
    parts = () if platform == CPU else (tiles,)  # each tile has its own gradients
    shapes = [dy.shape, (*parts, *kernel.shape), (*parts, *kernel.shape[::2])]
    dx, *gradients = _call("highway_backward", platform, rows, shapes, dy, kernel, _needed.bind(activation), kept)
    dkernel, dbias = gradients if platform == CPU else (gradient.sum(axis=0) for gradient in gradients)
    return dx, dkernel, dbias


def dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None) -> jax.Array:
    """A replacement of `jax.lax.dot_general` for a dense layer in a network with the fused kernel.

    If it is differentiated on a CPU, fused.cc computes `x @ kernel` and the gradient of `kernel`, in float32 whatever
    the precision. XLA computes everything else: the gradient of x, which a first layer does not need, other platforms,
    other dtypes, and products of other shapes than `(batch, inputs)` and `(inputs, outputs)`.

    Args:
      x: as for `jax.lax.dot_general`.
      kernel: as for `jax.lax.dot_general`.
      dimension_numbers: as for `jax.lax.dot_general`.
      precision: as for `jax.lax.dot_general`.
    """
    xla = partial(lax.dot_general, dimension_numbers=dimension_numbers, precision=precision)
    floats = {x.dtype, kernel.dtype} == {jnp.dtype(jnp.float32)}
    if not floats or (x.ndim, kernel.ndim) != (2, 2) or dimension_numbers != (((1,), (0,)), ((), ())):
        return xla(x, kernel)
    return lax.platform_dependent(x, kernel, **{CPU: _product}, default=xla)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _product_fwd(x, kernel):
    shape = x.shape[0], kernel.shape[1]
    return _call("highway_product", CPU, 0, [shape], _needed.bind(x), kernel)[0], (x, kernel)


def _product_bwd(kept, dy):
    x, kernel = kept
    return dy @ kernel.T, _call("highway_gradient", CPU, 0, [kernel.shape], x, dy)[0]


_product.defvjp(_product_fwd, _product_bwd)


def _tiles(platform: str, batch: int, width: int, side: int) -> tuple[int, int]:
    """How a batch is divided into tiles of examples that are computed together.

    On a CPU, there is one tile, padded to a multiple of the largest number of floats in a vector. On a GPU, a tile is
    computed by a block, whose threads have 10 outputs of the affine maps each.

    Returns:
      The number of rows in a tile, including padding, and the number of tiles.
    """
    if platform == CPU:
        return -(-batch // 16) * 16, 1
    groups = -(-width // (10 * width // side))
    most = min(MOST_ROWS, THREAD_ROWS * (THREADS // groups))
    tiles = -(-batch // most)
    return THREAD_ROWS * -(-batch // (THREAD_ROWS * tiles)), tiles


# An identity for one argument of a call, which loads the kernel when it is lowered. Tracing does not know the platform.
_needed = Primitive("highway_kernel")
_needed.def_abstract_eval(lambda operand: operand)
_needed.def_impl(jax.jit(_needed.bind))
batching.defvectorized(_needed)


def _lower_needed(platform: str) -> Any:
    def lower(context: Any, operand: Any) -> list[Any]:
        load(platform)
        return [operand]

    return lower


for _platform in CPU, GPU:
    mlir.register_lowering(_needed, _lower_needed(_platform), platform=_platform)


def _call(name: str, platform: str, rows: int, shapes: list[tuple[int, ...]], *args: jax.Array) -> Any:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    if platform == CPU:  # one run at a time, so that it stays in the caches
        return jax.ffi.ffi_call(name, results, vmap_method="sequential")(*args)
    return jax.ffi.ffi_call(name, results, vmap_method="broadcast_all")(*args, rows=np.int64(rows))
