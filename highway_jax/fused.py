"""Deep stacks of highway and plain layers as one kernel of our own on a CPU, forward and backward (fused.cc).

The machine's C++ compiler builds it when it is first asked for, once for every kind of machine, in a few seconds.
Where there is none, and on accelerators, `highway_jax.stack` does the same with XLA alone.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version

from highway_jax import blocks
from highway_jax.blocks import Block

SOURCE = Path(__file__).with_suffix(".cc")
WIDEST = 128  # beyond it XLA's products, made for all caches and cores, are mostly as fast or faster
COMPILERS = ("c++", "g++", "clang++")


class Unavailable(Exception):
    """There is no such kernel on this machine; the message says why, in one line."""


class NoCompiler(Unavailable):
    """There is no C++ compiler to build it."""


def supports(block: Block) -> bool:
    """Whether the kernel computes that kind of layer."""
    return block in (blocks.HIGHWAY, blocks.PLAIN)


@functools.cache
def load() -> None:
    """Build the kernel, unless it has been built before, and make it known to XLA.

    It is kept in `highway-jax` of the user's cache folder (`XDG_CACHE_HOME`, or ~/.cache).

    Raises:
      Unavailable: without a C++ compiler that can build it, or a folder to keep it in.
    """
    try:
        library = ctypes.cdll.LoadLibrary(str(_built()))
    except (OSError, RuntimeError) as error:  # says of which file; RuntimeError: there is no home
        raise Unavailable(f"it cannot be kept and loaded: {error}") from error
    for name in "highway_forward", "highway_backward":
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")


def choose(width: int) -> str:
    """An implementation of a stack: "fused" on a CPU that can build it, for widths that it is meant for, or "xla"."""
    if jax.default_backend() == "cpu" and width <= WIDEST:
        with contextlib.suppress(Unavailable):
            load()
            return "fused"
    return "xla"


def _built() -> Path:
    """The library of this source for this machine; its name ends in its checksum."""
    compilers = [path for path in map(shutil.which, COMPILERS) if path]
    tuned = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    options = ["-std=c++17", "-O3", tuned, "-fPIC", "-shared", "-isystem", jax.ffi.include_dir(), str(SOURCE)]
    identity = SOURCE.read_bytes(), " ".join(compilers + options).encode(), jaxlib.version.__version__.encode(), _cpu()
    name = f"fused-{_digest(b''.join(identity))}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "highway-jax"
    for library in folder.glob(f"{name}-*.so"):
        if library.stem == f"{name}-{_digest(library.read_bytes())}":
            return library
    if not compilers:
        raise NoCompiler(f"no C++ compiler ({', '.join(COMPILERS)}) is in the PATH")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch, "fused.so")
        for compiler in compilers:
            command = [compiler, *options, "-o", str(made)]
            environment = {**os.environ, "LC_ALL": "C"}
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
            if done.returncode == 0:
                # At once: another process may be about to load it.
                return made.replace(folder / f"{name}-{_digest(made.read_bytes())}.so")
    reason = next((line for line in done.stderr.splitlines() if "error" in line), f"status {done.returncode}")
    raise Unavailable(f"{compiler} cannot build it: {reason}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _cpu() -> bytes:
    """What distinguishes machines that cannot run each other's code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor()).encode()


def check(block: Block, x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: jax.Array) -> None:
    """Refuse what the kernel does not compute.

    Raises:
      ValueError: naming it.
    """
    if not supports(block):
        raise ValueError("implementation is 'fused'; it computes coupled highway and plain layers, and no others")
    width, parts = x.shape[-1] if x.ndim == 2 else 0, len(block.biases(0.0))
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


def forward(x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `stack` does with highway layers or, where the kernel is square, with plain ones; nothing is checked.

    Args:
      x: (batch, width).
      kernel: (layers, width, width), or (layers, width, 2 * width) with H's columns before T's.
      bias: (layers, width), or (layers, 2 * width).
      activation: an index into `highway_jax.activations.ACTIVATIONS`, int32.

    Returns:
      The output, (batch, width), and what `backward` needs. All arrays are float32.

    Raises:
      Unavailable: on a CPU that cannot build the kernel.
    """
    if jax.default_backend() == "cpu":
        load()
    (batch, width), (layers, _, side) = x.shape, kernel.shape
    states = 2 * side // width - 1  # x, and h and t of a highway layer
    return _call("highway_forward", [x.shape, (layers + 1, states, width, _padded(batch))], x, kernel, bias, activation)


def backward(
    dy: jax.Array, kernel: jax.Array, activation: jax.Array, kept: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of x, kernel and bias from the output's (Eq. 9 and the chain rule)."""
    return _call("highway_backward", [dy.shape, kernel.shape, kernel.shape[::2]], dy, kernel, activation, kept)


def _padded(batch: int) -> int:
    """Examples are padded to a multiple of the most that a vector of a CPU holds."""
    return -(-batch // 16) * 16


def _call(name: str, shapes: list[tuple[int, ...]], *args: jax.Array) -> Any:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")(*args)
