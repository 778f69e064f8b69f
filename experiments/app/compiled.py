"""JAX's persistent compilation cache: what XLA has compiled is kept for later processes."""

import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from experiments.app import errors
from highway_jax.files import make_private, user_cache

SETTINGS = {
    # Bytes, enough for forty searches on a CPU. The more the cache holds, the slower are writes to it.
    "jax_compilation_cache_max_size": 32 * 2**20,
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # a search has small programs too
}
FAILURES = ("Error reading persistent compilation cache", "Error writing persistent compilation cache")


def keep() -> None:
    """Have JAX cache what it compiles from here on, in `highway-jax/compiled` of the user's cache folder.

    JAX's own environment variables take precedence: JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off,
    JAX_COMPILATION_CACHE_DIR names another folder, and JAX's limits and thresholds can be set. If the folder is not
    private to the user or cannot be written, the programs print a warning and do without a cache.
    """
    if not _set("jax_enable_compilation_cache") or _set("jax_compilation_cache_dir"):
        return
    try:
        folder = _folder()
        make_private(folder)  # cached programs are executed
        folder.chmod(0o700)  # whatever the umask
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        errors.warn(f"compiled programs are not cached: {error}; XDG_CACHE_HOME may name another folder")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def explained(warning: str) -> str:
    """JAX's warning in our words, if it is about an entry of the cache that cannot be read or written.

    The cache is then emptied and turned off for this process. JAX would leave a damaged entry where it is, and in
    JAX 0.10 an entry that a killed process left unfinished blocks all writing.
    """
    if not warning.startswith(FAILURES) or _set("jax_compilation_cache_dir") != str(folder := _folder()):
        return warning
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    for path in folder.glob("*-*"):
        path.unlink(missing_ok=True)
    return f"{folder} has been emptied, since an entry could not be read or written: {warning.partition(': ')[2]}"


def _folder() -> Path:
    return user_cache() / "compiled"


def _set(name: str) -> Any:
    return getattr(jax.config, name)
