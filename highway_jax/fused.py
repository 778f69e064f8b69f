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
WIDEST = 128  # beyond it XLA, whose products use all caches and cores, is as fast or faster
COMPILERS = ("c++", "g++", "clang++")


class Unavailable(Exception):
    """There is no such kernel on this machine; the message says why, in one line."""


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
    except OSError as error:  # says of which file
        raise Unavailable(f"it cannot be kept and loaded: {error}") from error
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), f"status {error.returncode}")
        raise Unavailable(f"{error.cmd[0]} cannot build it: {reason}") from error
    for name in "highway_forward", "highway_backward":
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")


def choose(width: int) -> str:
    """The faster implementation of a stack here: "fused" on a CPU that can build the kernel, unless layers are wide."""
    if jax.default_backend() == "cpu" and width <= WIDEST:
        with contextlib.suppress(Unavailable):
            load()
            return "fused"
    return "xla"


def _built() -> Path:
    """The library of this source for this machine."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise Unavailable(f"no C++ compiler ({', '.join(COMPILERS)}) is in the PATH")
    tuned = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    command = [compiler, "-std=c++17", "-O3", tuned, "-fPIC", "-shared", "-isystem", jax.ffi.include_dir(), str(SOURCE)]
    identity = SOURCE.read_bytes(), " ".join(command).encode(), jaxlib.version.__version__.encode(), _cpu()
    name = f"fused-{hashlib.sha256(b''.join(identity)).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "highway-jax"  # noqa: PTH111
    if not (folder / name).exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, name)
            subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True)
            made.replace(folder / name)  # at once: another process may be about to load it
    return folder / name


def _cpu() -> bytes:
    """What distinguishes machines that cannot run each other's code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor()).encode()


def forward(x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `stack` does with highway layers or, where the kernel is square, with plain ones.

    Args:
      x: (batch, width).
      kernel: (layers, width, width), or (layers, width, 2 * width) with H's columns before T's.
      bias: (layers, width), or (layers, 2 * width).
      activation: an index into `highway_jax.activations.ACTIVATIONS`, int32.

    Returns:
      The output, (batch, width), and what `backward` needs. All arrays are float32.
    """
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
