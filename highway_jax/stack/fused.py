"""Deep stacks of highway and plain layers as one kernel of our own on a CPU, forward and backward (fused.cc).

The machine's C++ compiler builds it when it is first lowered for a CPU, once for every kind of machine, in seconds.
Where there is none, and on accelerators, `highway_jax.stack` does the same with XLA alone.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from highway_jax.stack import kinds as blocks
from highway_jax.stack.kinds import Kind

SOURCE = Path(__file__).with_suffix(".cc")
BUILD_SECONDS = 60  # a compiler that takes longer is stopped; it takes about 5
WIDEST = 128  # beyond it XLA's products, made for all caches and cores, are mostly as fast or faster
COMPILERS = ("c++", "g++", "clang++")
HANDLERS = ("highway_forward", "highway_backward")


class Unavailable(Exception):
    """There is no such kernel on this machine; the message says why, in one line."""


class NoCompiler(Unavailable):
    """There is no C++ compiler to build it."""


def supports(kind: Kind) -> bool:
    """Whether the kernel computes that kind of layer."""
    return kind in (blocks.HIGHWAY, blocks.PLAIN)


@functools.cache
def load() -> None:
    """Build the kernel, unless it has been built before, and make it known to XLA.

    It is kept in `highway-jax` of the user's cache folder (`XDG_CACHE_HOME`, or ~/.cache). That folder must belong to
    the user, and nobody else may be able to write to it or to replace it.

    Raises:
      Unavailable: without a C++ compiler that can build it, or a folder to keep it in.
    """
    try:
        path = _built()
        library = ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:  # names the file or folder; RuntimeError: there is no home
        raise Unavailable(f"it cannot be kept and loaded: {error}; XDG_CACHE_HOME may name another folder") from error
    for name in HANDLERS:
        if not hasattr(library, name):
            raise Unavailable(f"{path} has no function {name}; remove the file")
    for name in HANDLERS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")


def choose(width: int) -> str:
    """The implementation for the default backend: "fused" on a CPU that can build it, at suitable widths, or "xla"."""
    if jax.default_backend() == "cpu" and width <= WIDEST:
        with contextlib.suppress(Unavailable):
            load()
            return "fused"
    return "xla"


def needs_build() -> bool:
    """Whether `load` is about to run a C++ compiler, for some seconds, if it can at all."""
    try:
        compilers, _, folder, name = _recipe()
        return bool(compilers) and _kept(folder, name) is None
    except (OSError, RuntimeError):
        return False


def _recipe() -> tuple[list[str], list[str], Path, str]:
    """The compilers there are, their options, and the folder and the beginning of the name of what they build."""
    compilers = [path for path in map(shutil.which, COMPILERS) if path]
    tuned = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    options = ["-std=c++17", "-O3", tuned, "-fPIC", "-shared", "-isystem", jax.ffi.include_dir(), str(SOURCE)]
    identity = SOURCE.read_bytes(), " ".join(compilers + options).encode(), jaxlib.version.__version__.encode(), _cpu()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "highway-jax"
    return compilers, options, folder, f"fused-{_digest(b''.join(identity))}"


def _kept(folder: Path, name: str) -> Path | None:
    """What was built before and is as it was; its name ends in its checksum."""
    for library in folder.glob(f"{name}-*.so"):
        if _is_private(library) and library.stem == f"{name}-{_digest(library.read_bytes())}":
            return library
    return None


def _built() -> Path:
    """The library of this source for this machine."""
    compilers, options, folder, name = _recipe()
    if compilers or folder.exists():
        _make_private(folder)
    if library := _kept(folder, name):
        return library
    if not compilers:
        raise NoCompiler(f"no C++ compiler ({', '.join(COMPILERS)}) is in the PATH")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch, "fused.so")
        for compiler in compilers:
            status, said = _run([compiler, *options, "-o", str(made)])
            if status == 0:
                made.chmod(0o700)  # whatever the umask
                # At once: another process may be about to load it.
                return made.replace(folder / f"{name}-{_digest(made.read_bytes())}.so")
    reason = next((line for line in said.splitlines() if "error" in line), f"status {status}")
    raise Unavailable(f"{compiler} cannot build it: {reason}")


def _run(command: list[str]) -> tuple[int, str]:
    """The status and errors of a compiler; one that takes too long is stopped, with all that it has started."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=BUILD_SECONDS)
    except BaseException as error:  # also Ctrl-C, which does not reach it by itself
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Unavailable(f"{command[0]} has not built it within {BUILD_SECONDS} seconds") from None
        raise
    return process.returncode, said


# The cache's files are run. So they and their folder must belong to this user, and nobody else may write to them. A
# folder above may also belong to root, and be one where others may only add files of their own, such as /tmp.

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def _is_private(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & OTHERS_WRITE


def _make_private(folder: Path) -> None:
    """Make a folder for this user alone where it is missing, and refuse one that others can change or replace.

    Raises:
      OSError: naming that folder, or the one above it that lets them.
    """
    if not hasattr(os, "geteuid"):
        raise PermissionError(f"this system does not say who can write to {folder}")
    for place in (*reversed(folder.parents), folder):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)
        status, above = place.lstat(), place != folder
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(f"{place} must be a folder, not a file or link")
        if status.st_uid != os.geteuid() and not (above and status.st_uid == 0):
            raise PermissionError(f"{place} belongs to another user")
        writers = status.st_mode & OTHERS_WRITE
        harmless = status.st_mode & stat.S_ISVTX or (writers == stat.S_IWGRP and _is_own_group(status.st_gid))
        if writers and not (above and harmless):
            raise PermissionError(f"others can write to {place}")


def _is_own_group(group: int) -> bool:
    """Whether it is the group of this user and nobody else. Systems that make one for each user let it write."""
    import grp
    import pwd

    try:
        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return (user.pw_gid, user.pw_name) == (group, entry.gr_name) and set(entry.gr_mem) <= {user.pw_name}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _cpu() -> bytes:
    """What distinguishes machines that cannot run each other's code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor()).encode()


def check(kind: Kind, x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: jax.Array) -> None:
    """Refuse what the kernel does not compute.

    Raises:
      ValueError: naming it.
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


def forward(x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `stack` does with highway layers or, where the kernel is square, with plain ones; nothing is checked.

    Args:
      x: (batch, width).
      kernel: (layers, width, width), or (layers, width, 2 * width) with H's columns before T's.
      bias: (layers, width), or (layers, 2 * width).
      activation: an index into `highway_jax.functional.activations.ACTIVATIONS`, int32.

    Returns:
      The output, (batch, width), and what `backward` needs. All arrays are float32.

    Raises:
      Unavailable: when this is lowered for a CPU, if that cannot build the kernel.
    """
    (batch, width), (layers, _, side) = x.shape, kernel.shape
    states = 2 * side // width - 1  # x, and h and t of a highway layer
    shapes = [x.shape, (layers + 1, states, width, _padded(batch))]
    return _call("highway_forward", shapes, x, kernel, bias, _loaded.bind(activation))


def backward(
    dy: jax.Array, kernel: jax.Array, activation: jax.Array, kept: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of x, kernel and bias from the output's (Eq. 9 and the chain rule)."""
    shapes = [dy.shape, kernel.shape, kernel.shape[::2]]
    return _call("highway_backward", shapes, dy, kernel, _loaded.bind(activation), kept)


def _padded(batch: int) -> int:
    """Examples are padded to a multiple of the most that a vector of a CPU holds."""
    return -(-batch // 16) * 16


# The identity, for a call's index. It loads the kernel when it is lowered for a CPU; tracing knows no platform.
_loaded = Primitive("highway_kernel")
_loaded.def_abstract_eval(lambda index: index)
_loaded.def_impl(jax.jit(_loaded.bind))
batching.defvectorized(_loaded)


def _lower_loaded(context: Any, operand: Any) -> list[Any]:
    load()
    return [operand]


mlir.register_lowering(_loaded, _lower_loaded, platform="cpu")


def _call(name: str, shapes: list[tuple[int, ...]], *args: jax.Array) -> Any:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")(*args)
