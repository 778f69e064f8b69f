"""The checkpoints of a search: which search they belong to, when they are written, and how they are restored."""

import contextlib
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax

from highway_jax import parallel
from highway_jax.checkpoint import NAME, Checkpoints, steps_in
from highway_jax.files import PARTIAL, first_line
from highway_jax.population import tables
from highway_jax.population.memory import num_bytes
from highway_jax.population.result import Result

LOCK = ".lock"
DIGEST = re.compile("[0-9a-f]{32}")


class WorkdirError(Exception):
    """A workdir cannot be used for this search; the message is one line that says why."""


class WorkdirWarning(UserWarning):
    """A file in a workdir is damaged or cannot be written, and the search continues without it."""


class Storage:
    """The checkpoints of one search.

    Args:
      directory: the workdir.
      identity: what decides the numbers of the search, by name; values that JSON can hold.
      every: steps between checkpoints; None writes them as often as costs about one percent of the time.

    Raises:
      ValueError: if Orbax cannot store under this path (see `files.check_path`).
      WorkdirError: if the directory holds something else, cannot be written to, or is in use by another search.
    """

    share = 0.01
    bytes_per_second = 2e8  # that of a slow disk; the first checkpoint measures it

    def __init__(self, directory: Path, identity: Mapping[str, Any], every: int | None):
        self.directory, self.identity, self.every = directory, dict(identity), every
        self._lock = filelock.FileLock(directory / LOCK, timeout=0)
        parallel.at_first(self._take)
        self.checkpoints = Checkpoints(directory)
        self.last, self.reporting = time.monotonic(), 0.0  # `reporting`: seconds spent on tables with each checkpoint

    def _take(self) -> None:
        with self._writing():
            self._check_own()
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise WorkdirError(f"{self.directory}: another search is using it; choose another workdir") from None

    def _check_own(self) -> None:
        """Reject a directory of something else, since incomplete checkpoints in it would be removed."""
        if not self.directory.is_dir() or steps_in(self.directory):
            return
        locked = (self.directory / LOCK).exists()  # of a search that may have been killed in its first checkpoint
        for path in sorted(self.directory.iterdir()):
            own = locked and (path.name in tables.FILES or NAME.fullmatch(path.name))
            if not (own or path.name == LOCK or path.match(PARTIAL)):
                raise WorkdirError(
                    f"{self.directory}: it holds {path.name!r} and no checkpoint, so it is not the workdir of a "
                    "search; choose another one, or an empty directory"
                )

    def newest(self) -> tuple[int, dict[str, Any]]:
        """Find the newest intact checkpoint, removing damaged ones.

        Returns:
          Its step and its notes; 0 and an empty dict if there is none.

        Raises:
          WorkdirError: if it belongs to another search.
        """
        step = parallel.at_first(self._newest)
        return step, self.checkpoints.notes(step) if step else {}

    def _newest(self) -> int | None:
        for step in reversed(self.checkpoints.steps()):
            if file := self.checkpoints.damaged_file(step):
                self.checkpoints.remove(step)
                said = f"{self.directory}: checkpoint {step} is damaged ({file}); using the one before it"
                warnings.warn(said, WorkdirWarning, stacklevel=2)
                continue
            notes = self.checkpoints.notes(step)
            there = notes.get("identity", {})
            for name in sorted(self.identity.keys() | there.keys()):
                if there.get(name) != self.identity.get(name):
                    differs = _difference(name, there.get(name), self.identity.get(name))
                    raise WorkdirError(
                        f"{self.directory}: checkpoint {step} is of another search: its {differs}; choose another "
                        "workdir"
                    )
            if notes.get("step") != step:
                raise WorkdirError(
                    f"{self.directory}: checkpoint {step} was saved as {notes.get('step')}; give it its name back"
                )
            return step
        return None

    def restore(self, step: int, like: Any, rows: int) -> Any:
        """Restore a checkpoint; see `Checkpoints.restore`.

        Raises:
          WorkdirError: if the checkpoint has another structure.
        """
        try:
            return self.checkpoints.restore(step, like, rows)
        except ValueError as error:
            raise WorkdirError(f"{self.directory}: {first_line(error)}; choose another workdir") from error

    def due(self, step: int, state: Any) -> bool:
        """Whether to save after this step.

        Raises:
          WorkdirError: if the previous save failed.
        """
        with self._writing():
            busy, now = self.checkpoints.busy(), time.monotonic()
        if self.every is not None:
            return step % self.every == 0
        cost = self.checkpoints.seconds or 0.1 + num_bytes(state) / self.bytes_per_second
        cost += self.reporting
        if busy or now - self.last < cost / self.share:
            return False
        self.last = now
        return True

    def save(self, step: int, state: Any, notes: Mapping[str, Any]) -> None:
        """Start to write a checkpoint in the background.

        Args:
          step: the number of completed steps.
          state: a tree of arrays.
          notes: values that JSON can hold, by name.

        Raises:
          WorkdirError: if it cannot be written, or the previous save failed.
        """
        with self._writing():
            parallel.at_first(lambda: self._check_space(state))
            self.checkpoints.save(step, state, {**notes, "step": step, "identity": self.identity})

    def write_tables(self, result: Result) -> None:
        """Write the tables of a result. A failure is only a warning, since the checkpoint holds the same numbers."""
        if jax.process_index() == 0:
            try:
                tables.save(result, self.directory)
            except Exception as error:
                said = f"{self.directory}: tables cannot be written: {first_line(error)}"
                warnings.warn(said, WorkdirWarning, stacklevel=2)

    def _check_space(self, state: Any) -> None:
        needed, free = num_bytes(state), shutil.disk_usage(self.directory).free
        if free < needed:
            needs, has = f"{needed / 2**20:,.1f} MiB", f"{free / 2**20:,.1f} MiB"
            raise WorkdirError(f"{self.directory}: the disk is full; a checkpoint needs {needs}, and {has} are free")

    def wait(self) -> None:
        """Wait for the last save.

        Raises:
          WorkdirError: if it failed.
        """
        with self._writing():
            self.checkpoints.wait()

    def close(self) -> None:
        """Wait for the last save, then release the resources and the lock."""
        with self._writing():
            self.checkpoints.close()
        self._lock.release()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self.directory, "a checkpoint")


def _difference(name: str, before: Any, now: Any) -> str:
    """Describe how an entry of an identity differs, without showing digests."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        key = min(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return _difference(f"{name}[{key!r}]", before.get(key), now.get(key))
    if name == "task":
        return "task computes something else: another model, loss, metric or optimizer"
    if not any(isinstance(value, str) and DIGEST.fullmatch(value) for value in (before, now)):
        return f"{name} is {before!r}, here it is {now!r}"
    return f"{name} is {'missing' if before is None else 'missing here' if now is None else 'different'}"


@contextlib.contextmanager
def writing(directory: Path, what: str) -> Iterator[None]:
    """Turn any error in this context into a one-line `WorkdirError`, or into `parallel.ProcessLost`.

    Args:
      directory: the directory to name.
      what: what is written, such as "a checkpoint".

    Raises:
      WorkdirError: if something cannot be written.
      parallel.ProcessLost: if the cause is that another process has ended.
    """
    try:
        yield
    except (WorkdirError, parallel.Elsewhere, parallel.ProcessLost):
        raise
    except Exception as error:  # Orbax and TensorStore raise many types
        if parallel.blames_another(error):
            raise parallel.ProcessLost from error
        raise WorkdirError(f"{directory}: {what} cannot be written: {first_line(error)}") from error
