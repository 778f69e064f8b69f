"""Shared libraries that are built from C++ or CUDA on first use and cached for this machine."""

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

BUILD_SECONDS = 60  # a compiler that takes longer is stopped; these libraries take 5 to 10 seconds
COMPILERS = ("c++", "g++", "clang++")
HEADERS = Path(__file__).parent


class Unavailable(Exception):
    """A library cannot be built or loaded on this machine; the message says why in one line."""


class NoCompiler(Unavailable):
    """There is no compiler that could build a library."""


@dataclasses.dataclass(frozen=True)
class Library:
    """How a shared library is built.

    Attributes:
      source: its source file, which may include the headers next to this module.
      handlers: the names of its functions, which are registered with XLA under the same names.
      platform: the XLA platform on which they run, "cpu" or "CUDA".
      compilers: names or paths of compilers; the first one that exists and can build the library is used.
      options: options for the compiler, besides those for a shared library with XLA's headers.
      machine: bytes that differ between machines that cannot run each other's code.
    """

    source: Path
    handlers: tuple[str, ...]
    platform: str
    compilers: tuple[str, ...]
    options: tuple[str, ...]
    machine: bytes

    def load(self) -> None:
        """Load the library, building it if necessary, and register its handlers with XLA.

        A process tries this once and remembers the outcome.

        Raises:
          Unavailable: if there is no compiler that can build it, or no folder to keep it in (see `path`).
        """
        with _loading:
            reason = _loaded(self)
        if reason is not None:
            raise type(reason)(*reason.args)

    def needs_build(self) -> bool:
        """Whether `path` would run a compiler, which takes seconds."""
        try:
            compilers, _, folder, name = self._recipe()
            return bool(compilers) and _kept(folder, name) is None
        except (OSError, RuntimeError):
            return False

    def path(self) -> Path:
        """Return the path of the library, building it if necessary.

        It is kept in the folder `highway-jax` of the user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`). The folder
        must belong to the user, and nobody else may be able to write to it or to replace it.

        Raises:
          Unavailable: if there is no compiler that can build it.
          OSError: if the folder cannot be created or is not private; the message names it.
          RuntimeError: if the user has no home directory.
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
                    # An atomic rename, since another process may be about to load it.
                    return made.replace(folder / f"{name}-{_digest(made.read_bytes())}.so")
        reason = next((line for line in said.splitlines() if "error" in line), f"status {status}")
        raise Unavailable(f"{compiler} cannot build it: {reason}")

    def _recipe(self) -> tuple[list[str], list[str], Path, str]:
        """The available compilers, their options, and the folder and the start of the name of the library."""
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
    """A library that is built for the CPU of this machine and does not run on others."""
    tuned = "-march=native" if machine.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    return Library(source, handlers, "cpu", COMPILERS, ("-std=c++17", "-O3", tuned, "-fPIC"), _cpu())


@functools.cache
def _cpu() -> bytes:
    """Bytes that differ between machines that cannot run each other's code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), machine.processor()).encode()


_loading = threading.Lock()


@functools.cache
def _loaded(library: Library) -> Unavailable | None:
    """Load a library; return the reason if that is impossible."""
    try:
        path = library.path()
        loaded = ctypes.CDLL(str(path))
    except Unavailable as reason:
        return reason
    except (OSError, RuntimeError) as error:  # its message names the file or folder
        return Unavailable(f"it cannot be stored and loaded: {error}; XDG_CACHE_HOME may name another folder")
    for name in library.handlers:
        if not hasattr(loaded, name):
            return Unavailable(f"{path} has no function {name}; remove the file")
    for name in library.handlers:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform=library.platform)
    return None


def _kept(folder: Path, name: str) -> Path | None:
    """Find a library that was built before and is intact, as checked by the checksum at the end of its name."""
    for library in folder.glob(f"{name}-*.so"):
        if is_private(library) and library.stem == f"{name}-{_digest(library.read_bytes())}":
            return library
    return None


def _run(command: list[str]) -> tuple[int, str]:
    """Run a compiler and return its status and errors.

    Raises:
      Unavailable: if it takes too long; it is then killed with all processes that it has started.
    """
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
    except BaseException as error:  # including Ctrl-C, which does not reach the compiler in its own session
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
