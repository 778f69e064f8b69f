"""Save and restore arrays with Orbax."""

import os
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


def save_params(path: str | os.PathLike, params: Any) -> None:
    """Write a tree of arrays to the directory `path`, atomically, in place of what was there."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), params, force=True)


def restore_params(path: str | os.PathLike) -> Any:
    """Read back a tree of arrays that `save_params` wrote."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(Path(path).absolute())
