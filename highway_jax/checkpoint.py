"""Save and restore arrays with Orbax."""

import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


def save_params(path: str | os.PathLike, params: Any) -> None:
    """Write a tree of arrays to the directory `path`, atomically, in place of what was there.

    They are written as host arrays, so that they can be read on a machine with other devices.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), jax.device_get(params), force=True)


def restore_params(path: str | os.PathLike) -> Any:
    """Read back, as host arrays, a tree that `save_params` wrote."""
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.device_get(checkpointer.restore(Path(path).absolute()))
