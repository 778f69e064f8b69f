"""A search's checkpoints: whose they are, when they are written, and how they are read back."""

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
    """Something in a workdir is not as it was written, and was done without."""


class Storage:
    """The checkpoints of one search.

    Args:
      directory: where they are.
      identity: what decides the search's numbers, by name, JSON-able.
      every: steps between checkpoints; None for as often as costs a hundredth of the time.

    Raises:
      ValueError: for a path that cannot be stored under (`files.check_path`).
      WorkdirError: for a directory of something else, where nothing can be written, or another search is at work.
    """

    share = 0.01
    bytes_per_second = 2e8  # a slow disk; measured from the first checkpoint on

    def __init__(self, directory: Path, identity: Mapping[str, Any], every: int | None):
        self.directory, self.identity, self.every = directory, dict(identity), every
        self._lock = filelock.FileLock(directory / LOCK, timeout=0)
        parallel.at_first(self._take)
        self.checkpoints = Checkpoints(directory)
        self.last, self.reporting = time.monotonic(), 0.0  # seconds: what goes with a checkpoint, such as tables

    def _take(self) -> None:
        with self._writing():
            self._check_own()
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise WorkdirError(
                    f"{self.directory}: another search is at work in it; choose another workdir"
                ) from None

    def _check_own(self) -> None:
        """Refuse a directory of something else: what is incomplete among checkpoints is removed."""
        if not self.directory.is_dir() or steps_in(self.directory):
            return
        locked = (self.directory / LOCK).exists()  # a search was here, maybe killed in its first checkpoint
        for path in sorted(self.directory.iterdir()):
            own = locked and (path.name in tables.FILES or NAME.fullmatch(path.name))
            if not (own or path.name == LOCK or path.match(PARTIAL)):
                raise WorkdirError(
                    f"{self.directory}: it holds {path.name!r} and no checkpoint, so it is no workdir of a search; "
                    "choose another one, or an empty directory"
                )

    def newest(self) -> tuple[int, dict[str, Any]]:
        """The step and notes of the newest intact checkpoint, 0 and nothing if there is none; damaged ones are removed.

        Raises:
          WorkdirError: if it is of another search.
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
        """Read a checkpoint; see `Checkpoints.restore`."""
        try:
            return self.checkpoints.restore(step, like, rows)
        except ValueError as error:
            raise WorkdirError(f"{self.directory}: {first_line(error)}; choose another workdir") from error

    def due(self, step: int, state: Any) -> bool:
        """Whether to save after this step; raises the error of a save that failed."""
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
        """Begin to write a checkpoint; the notes are JSON-able.

        Raises:
          WorkdirError: where it cannot be written, or the one before could not.
        """
        with self._writing():
            parallel.at_first(lambda: self._check_space(state))
            self.checkpoints.save(step, state, {**notes, "step": step, "identity": self.identity})

    def write_tables(self, result: Result) -> None:
        """Write a result's numbers beside the checkpoints; warns where that fails, since they follow from those."""
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
        """Wait for the last save, raising its error if it failed."""
        with self._writing():
            self.checkpoints.wait()

    def close(self) -> None:
        """Wait for the last save and free what saving needs."""
        with self._writing():
            self.checkpoints.close()
        self._lock.release()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self.directory, "a checkpoint")


def _difference(name: str, before: Any, now: Any) -> str:
    """What differs in an entry of an identity, in words: a digest would tell a reader nothing."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        key = min(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return _difference(f"{name}[{key!r}]", before.get(key), now.get(key))
    if name == "task":
        return "task computes something else: another model, loss, metric or optimizer"
    if not any(isinstance(value, str) and DIGEST.fullmatch(value) for value in (before, now)):
        return f"{name} is {before!r}, here it is {now!r}"
    return f"{name} is {'missing' if before is None else 'not here' if now is None else 'another'}"


@contextlib.contextmanager
def writing(directory: Path, what: str) -> Iterator[None]:
    """What goes wrong in storing something is a `WorkdirError`, or `parallel.ProcessLost`."""
    try:
        yield
    except (WorkdirError, parallel.Elsewhere, parallel.ProcessLost):
        raise
    except Exception as error:  # Orbax and TensorStore have many
        if parallel.blames_another(error):
            raise parallel.ProcessLost from error
        raise WorkdirError(f"{directory}: {what} cannot be written: {first_line(error)}") from error
