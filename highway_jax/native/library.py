"""Shared libraries that are built from C++ or CUDA when they are first needed, and kept for this machine."""

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import os
import platform as machine
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import jax
import jaxlib.version

from highway_jax.files import is_private, make_private, user_cache

BUILD_SECONDS = 60  # a compiler that takes longer is stopped; those here take 5 to 10
COMPILERS = ("c++", "g++", "clang++")
HEADERS = Path(__file__).parent


class Unavailable(Exception):
    """There is no such library on this machine; the message says why, in one line."""


class NoCompiler(Unavailable):
    """There is no compiler to build it."""


@dataclasses.dataclass(frozen=True)
class Library:
    """How a shared library is built.

    Attributes:
      source: its only file, but for the headers beside this module.
      handlers: its functions, by the names under which XLA is to know them.
      platform: of XLA, where they run: "cpu" or "CUDA".
      compilers: names or paths, the first that there is and that can build it is taken.
      options: for any of them, beside those that make it a library with XLA's headers.
      machine: what distinguishes machines that cannot run each other's code.
    """

    source: Path
    handlers: tuple[str, ...]
    platform: str
    compilers: tuple[str, ...]
    options: tuple[str, ...]
    machine: bytes

    def load(self) -> None:
        """Build it, unless it has been built before, and make its handlers known to XLA.

        It is tried once in a process, whatever comes of it.

        Raises:
          Unavailable: without a compiler that can build it, or a folder to keep it in (`path`).
        """
        with _loading:
            reason = _loaded(self)
        if reason is not None:
            raise type(reason)(*reason.args)

    def needs_build(self) -> bool:
        """Whether `path` is about to run a compiler, for some seconds, if it can at all."""
        try:
            compilers, _, folder, name = self._recipe()
            return bool(compilers) and _kept(folder, name) is None
        except (OSError, RuntimeError):
            return False

    def path(self) -> Path:
        """The library, which is built unless it is there already.

        It is kept in `highway-jax` of the user's cache folder (`XDG_CACHE_HOME`, or ~/.cache). That folder must belong
        to the user, and nobody else may be able to write to it or to replace it.

        Raises:
          Unavailable: without a compiler that can build it.
          OSError, RuntimeError: without a folder to keep it in, naming the folder.
        """
        compilers, options, folder, name = self._recipe()
        if compilers or folder.exists():
            make_private(folder)
        if library := _kept(folder, name):
            return library
        if not compilers:
            raise NoCompiler(f"no {self._kind} compiler ({', '.join(map(_basename, self.compilers))}) is in the PATH")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, "library.so")
            for compiler in compilers:
                status, said = _run([compiler, *options, "-o", str(made)])
                if status == 0:
                    made.chmod(0o700)  # whatever the umask
                    # At once: another process may be about to load it.
                    return made.replace(folder / f"{name}-{_digest(made.read_bytes())}.so")
        reason = next((line for line in said.splitlines() if "error" in line), f"status {status}")
        raise Unavailable(f"{compiler} cannot build it: {reason}")

    def _recipe(self) -> tuple[list[str], list[str], Path, str]:
        """The compilers there are, their options, and the folder and the beginning of the name of what they build."""
        compilers = [path for path in map(shutil.which, self.compilers) if path]
        options = [*self.options, "-shared", "-isystem", jax.ffi.include_dir(), f"-I{HEADERS}", str(self.source)]
        said, version = " ".join(compilers + options), jaxlib.version.__version__
        headers = (header.read_bytes() for header in sorted(HEADERS.glob("*.h")))
        identity = self.source.read_bytes(), *headers, said.encode(), version.encode(), self.machine
        folder = user_cache()
        return compilers, options, folder, f"{self.source.stem}-{_digest(b''.join(identity))}"

    @property
    def _kind(self) -> str:
        return {".cc": "C++", ".cu": "CUDA"}[self.source.suffix]


def for_cpu(source: Path, *handlers: str) -> Library:
    """A library for the CPU of this machine, and no other."""
    tuned = "-march=native" if machine.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    return Library(source, handlers, "cpu", COMPILERS, ("-std=c++17", "-O3", tuned, "-fPIC"), _cpu())


@functools.cache
def _cpu() -> bytes:
    """What distinguishes machines that cannot run each other's code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), machine.processor()).encode()


_loading = threading.Lock()


@functools.cache
def _loaded(library: Library) -> Unavailable | None:
    """What kept it from being loaded."""
    try:
        path = library.path()
        loaded = ctypes.CDLL(str(path))
    except Unavailable as reason:
        return reason
    except (OSError, RuntimeError) as error:  # names the file or folder; RuntimeError: there is no home
        return Unavailable(f"it cannot be kept and loaded: {error}; XDG_CACHE_HOME may name another folder")
    for name in library.handlers:
        if not hasattr(loaded, name):
            return Unavailable(f"{path} has no function {name}; remove the file")
    for name in library.handlers:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform=library.platform)
    return None


def _kept(folder: Path, name: str) -> Path | None:
    """What was built before and is as it was; its name ends in its checksum."""
    for library in folder.glob(f"{name}-*.so"):
        if is_private(library) and library.stem == f"{name}-{_digest(library.read_bytes())}":
            return library
    return None


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


def _basename(compiler: str) -> str:
    return Path(compiler).name


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
