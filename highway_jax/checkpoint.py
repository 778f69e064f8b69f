"""Save and restore arrays with Orbax; tell whether files are still what was written."""

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
NAME = re.compile(r"\d{6,}(\.orbax-checkpoint-tmp.*)?")  # of a checkpoint, complete or not


def save_params(path: str | os.PathLike, params: Any) -> None:
    """Write a tree of arrays to the directory `path`, atomically, in place of what was there.

    What a killed process left half-written beside it is removed. The arrays are written as host arrays, so that they
    can be read on a machine with other devices, and by the calling process alone.

    Raises:
      ValueError: for a path that cannot be stored under (`files.check_path`), or arrays that cannot (`check_names`).
    """
    check_path(path)
    check_names(params)
    path = Path(path).absolute()
    for unfinished in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished)
    with _alone() as checkpointer:
        checkpointer.save(path, jax.device_get(params), force=True)


def restore_params(path: str | os.PathLike) -> Any:
    """Read back, as host arrays and in the calling process alone, a tree that `save_params` wrote."""
    with _alone() as checkpointer:
        return jax.device_get(checkpointer.restore(Path(path).absolute()))


def _alone() -> ocp.StandardCheckpointer:
    """Saves and restores without the other processes."""
    this = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
    return ocp.StandardCheckpointer(multiprocessing_options=options)


class Checkpoints:
    """The checkpoints of a long piece of work: written in the background, whole or not at all, the last few kept.

    `directory/STEP` is an Orbax checkpoint, complete once it holds the checksums of its files. What a killed process
    left half-written is removed when the next one opens the directory, which must be of checkpoints alone.

    Where there are several processes, all of them must make it, `save` and `restore`, on a file system that they
    share. Each writes the shards that it holds; the first does the rest.

    Args:
      directory: made if it does not exist.
      keep: how many complete checkpoints stay.

    Attributes:
      seconds: what the last complete save took, from its beginning to its end.

    Raises:
      ValueError: for a path that cannot be stored under (`files.check_path`).
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
        # Weights do not compress; without trying, writing is four times as fast.
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future | None = None
        self.seconds: float | None = None

    def steps(self) -> list[int]:
        """The steps of complete checkpoints, ascending."""
        return steps_in(self.directory)

    def save(self, step: int, tree: Any, notes: Mapping[str, Any]) -> None:
        """Begin to write a tree of arrays and JSON-able notes; waits for the save before it, raising its error.

        The arrays may be donated afterwards.
        """
        check_names(tree)
        self.wait()
        started = time.monotonic()
        path = self._path(step)
        if self._first:
            shutil.rmtree(path, ignore_errors=True)  # a damaged one
        self._orbax.save(path, args=ocp.args.PyTreeSave(tree), custom_metadata=dict(notes))
        self._pending = self._thread.submit(self._complete, path, started)

    def _complete(self, path: Path, started: float) -> None:
        self._orbax.wait_until_finished()  # for all processes
        if self._first:
            write_sums(path, files_in(path))
            for step in self.steps()[: -self.keep]:
                shutil.rmtree(self._path(step))
        self.seconds = time.monotonic() - started

    def busy(self) -> bool:
        """Whether a save is still being written; raises the error of one that failed."""
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is not None

    def wait(self) -> None:
        """Wait for the last save, raising its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def notes(self, step: int) -> dict[str, Any]:
        """The notes of a checkpoint whose files are intact (see `damaged_file`)."""
        return read_notes(self._path(step))

    def restore(self, step: int, like: Any, rows: int = 0) -> Any:
        """Read a checkpoint whose files are intact (see `damaged_file`).

        Args:
          step: one of `steps()`.
          like: a tree of the saved one's structure, shapes and dtypes. A `jax.ShapeDtypeStruct` with a sharding
            becomes a `jax.Array`; if its leading axis is shorter or longer than the saved one's, the array is cut
            or filled up with zeros. Any other leaf becomes a NumPy array.
          rows: how many rows such a leading axis must have been saved with, at least.

        Raises:
          ValueError: if the checkpoint's arrays have other names, dtypes or shapes.
        """
        saved, needed = _named(self._orbax.metadata(self._path(step)).item_metadata.tree), _named(like)
        if strange := saved.keys() ^ needed.keys():
            name = min(strange)
            raise ValueError(f"checkpoint {step} is of another form: it {'has' if name in saved else 'lacks'} {name}")
        for name, leaf in needed.items():
            there, free = saved[name], isinstance(leaf, jax.ShapeDtypeStruct)  # free to differ in its leading axis
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
        """The first file of a checkpoint that is not as it was written, or None."""
        path = self._path(step)
        return damaged_file(path, (file for file in files_in(path) if file.name != SUMS))

    def remove(self, step: int) -> None:
        """Remove a checkpoint."""
        shutil.rmtree(self._path(step))

    def _path(self, step: int) -> Path:
        return self.directory / f"{step:06d}"

    def close(self) -> None:
        """Wait for the last save and free what saving needs."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()


def _named(tree: Any) -> dict[str, Any]:
    """A tree's leaves by their paths, whatever its containers are."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def check_names(tree: Any) -> None:
    """Refuse a tree of arrays that Orbax does not give back as it is.

    Raises:
      ValueError: if two arrays have one name, as `{"a": {"b": 1}, "a.b": 2}` has "a.b" twice, or one has no elements.
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
    """Whether this is what a killed process left of a checkpoint, and nobody else's folder."""
    if not NAME.fullmatch(entry.name) or (entry / SUMS).is_file():
        return False
    return not entry.name.isdigit() or (entry / "_CHECKPOINT_METADATA").is_file()


def steps_in(directory: Path) -> list[int]:
    """The steps of complete checkpoints in a directory, ascending."""
    names = (entry.parent.name for entry in directory.glob(f"*/{SUMS}"))
    return sorted(int(name) for name in names if re.fullmatch(r"\d{6,}", name))  # not copies under other names


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a checkpoint in a directory of its own."""
    with contextlib.closing(ocp.PyTreeCheckpointer()) as orbax:
        return orbax.metadata(path).custom_metadata


def write_sums(directory: Path, files: Iterable[Path]) -> None:
    """Write `directory/SHA256SUMS` for files in it, atomically, in the form that `sha256sum --check` reads."""
    lines = [f"{_sum(file)}  {file.relative_to(directory).as_posix()}\n" for file in sorted(files)]
    write_whole(directory / SUMS, "".join(lines).encode())


def damaged_file(directory: Path, files: Iterable[Path]) -> str | None:
    """The name of the first file in a directory that is not as `write_sums` found it, or None if all are.

    Args:
      directory: what `write_sums` was given.
      files: those that must be there and intact, besides all that `SHA256SUMS` lists. It is itself the damaged
        one where it makes no sense.
    """
    try:
        *lines, end = (directory / SUMS).read_text().split("\n")
        sums = {name: expected for expected, name in (line.split("  ", 1) for line in lines)}
    except ValueError:
        return SUMS
    if end:  # cut off in the middle of a line
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
