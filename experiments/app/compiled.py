"""What XLA has compiled, kept for the next process that needs the same (JAX's persistent compilation cache)."""

import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from experiments.app import errors
from highway_jax.files import make_private, user_cache

SETTINGS = {
    # Bytes: of forty searches on a CPU. To write to it takes the longer, the more it holds.
    "jax_compilation_cache_max_size": 32 * 2**20,
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # a search has small programs too
}
FAILURES = ("Error reading persistent compilation cache", "Error writing persistent compilation cache")


def keep() -> None:
    """Have JAX keep what it compiles from here on: in `highway-jax/compiled` of the user's cache folder.

    JAX's own settings go first: with JAX_ENABLE_COMPILATION_CACHE=0 nothing is kept, a folder that
    JAX_COMPILATION_CACHE_DIR names is used as JAX would, and a bound or threshold of the environment's holds. Where
    what is kept would not be the user's alone, or cannot be written, the programs say so and go on without.
    """
    if not _set("jax_enable_compilation_cache") or _set("jax_compilation_cache_dir"):
        return
    try:
        folder = _folder()
        make_private(folder)  # what is kept is run
        folder.chmod(0o700)  # whatever the umask of those who write to it
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        errors.warn(f"what is compiled is not kept: {error}; XDG_CACHE_HOME may name another folder")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def explained(warning: str) -> str:
    """A warning of JAX's in words of ours, if it is of what cannot be read or written there.

    What is kept is then removed, and nothing more is kept in this process: JAX leaves a damaged entry as it is, and in
    0.10 one that a killed process has left unfinished ends all writing.
    """
    if not warning.startswith(FAILURES) or _set("jax_compilation_cache_dir") != str(folder := _folder()):
        return warning
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    for path in folder.glob("*-*"):
        path.unlink(missing_ok=True)
    return f"{folder} is emptied, since what is kept there failed to be of use: {warning.partition(': ')[2]}"


def _folder() -> Path:
    return user_cache() / "compiled"


def _set(name: str) -> Any:
    return getattr(jax.config, name)
