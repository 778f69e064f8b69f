"""Saving and restoring arrays with Orbax, with checksums that detect damaged files."""

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from highway_jax import parallel
from highway_jax.files import check_path, write_whole

SUMS = "SHA256SUMS"
NAME = re.compile(r"\d{6,}(\.orbax-checkpoint-tmp.*)?")  # the name of a complete or incomplete checkpoint


def save_params(path: str | os.PathLike, params: Any) -> None:
    """Write a tree of arrays to a directory, atomically replacing what was there.

    Files that a killed process left next to the directory are removed. Only the calling process writes. It writes host
    arrays, which can be restored on a machine with other devices.

    Args:
      path: the directory.
      params: a tree of arrays.

    Raises:
      ValueError: if Orbax cannot store under this path (see `files.check_path`), or cannot store these arrays (see
        `check_names`).

    Example:
      ```python
      checkpoint.save_params("best", result.best.params)
      params = checkpoint.restore_params("best")
      ```
    """
    check_path(path)
    check_names(params)
    path = Path(path).absolute()
    for unfinished in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished)
    with _alone() as checkpointer:
        checkpointer.save(path, jax.device_get(params), force=True)


def restore_params(path: str | os.PathLike) -> Any:
    """Read a tree of arrays that `save_params` has written, as host arrays; only the calling process reads."""
    with _alone() as checkpointer:
        return jax.device_get(checkpointer.restore(Path(path).absolute()))


def _alone() -> ocp.StandardCheckpointer:
    """A checkpointer that involves only this process."""
    this = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
    return ocp.StandardCheckpointer(multiprocessing_options=options)


class Checkpoints:
    """A directory of checkpoints, which are written atomically in the background; the last few are kept.

    `directory/STEP` is an Orbax checkpoint, which is complete once it has the checksums of its files. Incomplete
    checkpoints of a killed process are removed when the directory is opened again, so it must hold nothing but
    checkpoints.

    With several processes, all of them must create the object and call `save` and `restore`, on a shared file system.
    Each writes its own shards; the first does everything else.

    Args:
      directory: the directory, which is created if it does not exist.
      keep: the number of complete checkpoints to keep.

    Attributes:
      seconds: the duration of the last complete save, or None.

    Raises:
      ValueError: if Orbax cannot store under this path (see `files.check_path`).
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 3):
        check_path(directory)
        self.directory, self.keep = Path(directory).absolute(), keep
        self._first = jax.process_index() == 0
        if self._first:
            self.directory.mkdir(parents=True, exist_ok=True)
            for entry in self.directory.iterdir():
                if _is_incomplete(entry):
                    shutil.rmtree(entry)
        parallel.agree()
        # Weights hardly compress, and writing is four times as fast without compression.
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future | None = None
        self.seconds: float | None = None

    def steps(self) -> list[int]:
        """The steps of complete checkpoints, ascending."""
        return steps_in(self.directory)

    def save(self, step: int, tree: Any, notes: Mapping[str, Any]) -> None:
        """Start to write a checkpoint, after waiting for the previous save and raising its error if it failed.

        The arrays may be donated once this method has returned.

        Args:
          step: the number of the checkpoint.
          tree: a tree of arrays.
          notes: values that JSON can hold, by name.

        Raises:
          ValueError: if the arrays cannot be stored (see `check_names`).
        """
        check_names(tree)
        self.wait()
        started = time.monotonic()
        path = self._path(step)
        if self._first:
            shutil.rmtree(path, ignore_errors=True)  # a damaged checkpoint
        self._orbax.save(path, args=ocp.args.PyTreeSave(tree), custom_metadata=dict(notes))
        self._pending = self._thread.submit(self._complete, path, started)

    def _complete(self, path: Path, started: float) -> None:
        self._orbax.wait_until_finished()  # of all processes
        if self._first:
            write_sums(path, files_in(path))
            for step in self.steps()[: -self.keep]:
                shutil.rmtree(self._path(step))
        self.seconds = time.monotonic() - started

    def busy(self) -> bool:
        """Whether a save is still being written; if it failed, its error is raised."""
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is not None

    def wait(self) -> None:
        """Wait for the last save; if it failed, its error is raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def notes(self, step: int) -> dict[str, Any]:
        """The notes of a checkpoint whose files are intact (see `damaged_file`)."""
        return read_notes(self._path(step))

    def restore(self, step: int, like: Any, rows: int = 0) -> Any:
        """Restore a checkpoint whose files are intact (see `damaged_file`).

        Args:
          step: one of `steps()`.
          like: a tree with the structure, shapes and dtypes of the saved one. A `jax.ShapeDtypeStruct` with a sharding
            is restored as a `jax.Array`. If its leading axis is shorter or longer than that of the saved array, the
            array is truncated or padded with zeros. Any other leaf is restored as a NumPy array.
          rows: the smallest length that such a leading axis must have in the checkpoint.

        Returns:
          The restored tree.

        Raises:
          ValueError: if the arrays of the checkpoint have other names, dtypes or shapes.
        """
        saved, needed = _named(self._orbax.metadata(self._path(step)).item_metadata.tree), _named(like)
        if strange := saved.keys() ^ needed.keys():
            name = min(strange)
            raise ValueError(f"checkpoint {step} is of another form: it {'has' if name in saved else 'lacks'} {name}")
        for name, leaf in needed.items():
            there, free = saved[name], isinstance(leaf, jax.ShapeDtypeStruct)  # the leading axis may differ
            same = (len(there.shape), there.shape[free:]) == (len(leaf.shape), leaf.shape[free:])
            if not same or there.dtype != leaf.dtype or (free and there.shape[0] < rows):
                raise ValueError(
                    f"checkpoint {step} is of another form: {name} is {there.dtype}{list(there.shape)} in it; "
                    f"it must be {leaf.dtype}{list(leaf.shape)}"
                )

        def how(leaf: Any) -> ocp.RestoreArgs:
            if isinstance(leaf, jax.ShapeDtypeStruct):
                return ocp.ArrayRestoreArgs(
                    sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=False
                )
            return ocp.RestoreArgs(restore_type=np.ndarray)

        args = ocp.args.PyTreeRestore(item=like, restore_args=jax.tree.map(how, like))
        return self._orbax.restore(self._path(step), args=args)

    def damaged_file(self, step: int) -> str | None:
        """The name of the first damaged or missing file of a checkpoint, or None."""
        path = self._path(step)
        return damaged_file(path, (file for file in files_in(path) if file.name != SUMS))

    def remove(self, step: int) -> None:
        """Remove a checkpoint."""
        shutil.rmtree(self._path(step))

    def _path(self, step: int) -> Path:
        return self.directory / f"{step:06d}"

    def close(self) -> None:
        """Wait for the last save and release all resources; if it failed, its error is raised."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, whatever the types of its containers."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def check_names(tree: Any) -> None:
    """Reject a tree of arrays that Orbax would not restore unchanged.

    Raises:
      ValueError: if two arrays have the same name, such as "a.b" in `{"a": {"b": 1}, "a.b": 2}`, or an array has no
        elements.
    """
    names = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in names:
            raise ValueError(f"two arrays would be stored as {name!r}; give their keys names without dots")
        if 0 in np.shape(leaf):
            raise ValueError(f"{name!r} is of shape {np.shape(leaf)}; an array without elements cannot be stored")
        names.add(name)


def _is_incomplete(entry: Path) -> bool:
    """Whether this is a checkpoint that a killed process left incomplete, and not another folder."""
    if not NAME.fullmatch(entry.name) or (entry / SUMS).is_file():
        return False
    return not entry.name.isdigit() or (entry / "_CHECKPOINT_METADATA").is_file()


def steps_in(directory: Path) -> list[int]:
    """The steps of complete checkpoints in a directory, ascending."""
    names = (entry.parent.name for entry in directory.glob(f"*/{SUMS}"))
    return sorted(int(name) for name in names if re.fullmatch(r"\d{6,}", name))  # no renamed copies


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of the checkpoint in a directory."""
    with contextlib.closing(ocp.PyTreeCheckpointer()) as orbax:
        return orbax.metadata(path).custom_metadata


def write_sums(directory: Path, files: Iterable[Path]) -> None:
    """Write the checksums of files in a directory to its `SHA256SUMS`, atomically, as `sha256sum --check` reads it."""
    lines = [f"{_sum(file)}  {file.relative_to(directory).as_posix()}\n" for file in sorted(files)]
    write_whole(directory / SUMS, "".join(lines).encode())


def damaged_file(directory: Path, files: Iterable[Path]) -> str | None:
    """The name of the first damaged or missing file in a directory, or None.

    Args:
      directory: the directory that was given to `write_sums`.
      files: the files that must be listed and intact, in addition to all files that `SHA256SUMS` lists.

    Returns:
      The name, which is `SHA256SUMS` if that file cannot be interpreted or does not list a file.
    """
    try:
        *lines, end = (directory / SUMS).read_text().split("\n")
        sums = {name: expected for expected, name in (line.split("  ", 1) for line in lines)}
    except ValueError:
        return SUMS
    if end:  # truncated within a line
        return SUMS
    for name in sorted(sums.keys() | {file.relative_to(directory).as_posix() for file in files}):
        if name not in sums or "\0" in name:
            return SUMS
        if not (directory / name).is_file() or _sum(directory / name) != sums[name]:
            return name
    return None


def files_in(directory: Path) -> Iterator[Path]:
    """All files below a directory."""
    return (file for file in directory.rglob("*") if file.is_file())


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
