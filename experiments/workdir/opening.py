"""Start or resume work in a workdir: check what it holds already, and lock it."""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.workdir import files
from experiments.workdir.files import CHECKPOINTS, FORMAT, LOCK, RESULTS, damaged, has_work, read_json, write_json
from experiments.workdir.identity import Identity, as_json, check_config, check_identity
from highway_jax import checkpoint, parallel
from highway_jax.files import PARTIAL, check_path


def is_finished(workdir: Path, config: ConfigDict) -> bool:
    """Whether a workdir holds finished work of this config.

    Raises:
      UserError: if the workdir is a file, is damaged, holds work of another config or of an older version, or holds
        any work although `config.resume` is "never".
    """
    return bool(parallel.at_first(lambda: _is_finished(workdir, config)))


def _is_finished(workdir: Path, config: ConfigDict) -> bool:
    try:
        check_path(workdir)
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir is {str(workdir)!r}, which is a file; it must be a directory or not exist yet")
        files.refuse_special(workdir)
        if not (workdir / "provenance.json").exists():
            _check_empty(workdir)
            return False
        about = _provenance(workdir)
        if not has_work(workdir):
            return False  # stopped before the first checkpoint
        if config.resume == "never":
            raise UserError(f"config.resume is 'never', but {workdir} holds earlier work; choose another --workdir")
        finished = (workdir / checkpoint.SUMS).exists()
        # Without a config, the checkpoints themselves are checked (`_check_checkpoints`).
        if finished or (earlier := _read_if_intact(workdir / "config.json")):
            check_config(workdir, ConfigDict(read_json(workdir / "config.json") if finished else earlier), config)
        if not finished:
            files.check_format(workdir, {"format": FORMAT, **about}, (FORMAT,))
            return False
        if name := checkpoint.damaged_file(workdir, [workdir / name for name in RESULTS]):
            raise damaged(workdir / name, "its checksum is wrong; choose another --workdir")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--workdir is {str(workdir)!r}, which cannot be used: {reason}") from error
    return True


def _check_empty(workdir: Path) -> None:
    """Refuse a directory that holds anything but the leftovers of a process that was killed right at its start."""
    for path in sorted(workdir.iterdir()) if workdir.exists() else ():
        if path.name != LOCK and not path.match(PARTIAL):
            raise UserError(
                f"--workdir is {str(workdir)!r}, which holds {path.name!r} and no 'provenance.json', so it is not a "
                "workdir of this program; choose another one, or an empty directory"
            )


def _provenance(workdir: Path) -> dict[str, Any]:
    """The provenance of a workdir; {} for unfinished work whose file a power loss has damaged."""
    if (workdir / checkpoint.SUMS).exists() or _read_if_intact(workdir / "provenance.json"):
        return files.read_provenance(workdir)
    return {}


def _read_if_intact(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(UserError):
        return read_json(path)
    return None


def earlier_implementations(workdir: Path) -> dict[str, str] | None:
    """What computed the layers of each network in a workdir; None if there is no work, or no record of it."""
    return _provenance(workdir).get("implementations") if has_work(workdir) else None


@contextmanager
def opened(workdir: Path, identity: Identity, about: Mapping[str, Any]) -> Iterator[bool]:
    """Create and lock the workdir, and write its config and provenance; yields whether its work is finished.

    Args:
      workdir: the directory.
      identity: what decides the results.
      about: this process's provenance, from `provenance`.

    Raises:
      UserError: if the workdir cannot be written, holds a symbolic link or unfinished work on other data or with
        another implementation, or is in use by another process.
    """
    lock = filelock.FileLock(workdir / LOCK, timeout=0)

    def begin() -> bool:
        try:
            files.refuse_links(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            if _is_finished(workdir, identity.config):
                return True
            before = _provenance(workdir) if has_work(workdir) else {}
            check_identity(workdir, before, identity)
            if not _read_if_intact(workdir / "config.json"):
                _check_checkpoints(workdir, identity)
            for leftover in workdir.glob(PARTIAL):  # left by a killed process
                leftover.unlink()
            # In this order, so that a workdir with a config also has its format.
            now = {**about, "data_md5": dict(identity.data_md5), "implementations": dict(identity.implementations)}
            write_json(workdir / "provenance.json", {**now, "earlier": _earlier(before, now)})
            write_json(workdir / "config.json", as_json(identity.config))
        except filelock.Timeout as error:
            raise UserError(
                f"--workdir is {str(workdir)!r}, which another process is using; choose another --workdir"
            ) from error
        except OSError as error:
            raise UserError(f"--workdir is {str(workdir)!r}, which cannot be written: {error.strerror}") from error
        return False

    try:
        yield bool(parallel.at_first(begin))
    finally:
        lock.release()


def _check_checkpoints(workdir: Path, identity: Identity) -> None:
    """Refuse checkpoints of other work, in a workdir without a config."""
    for folder in sorted((workdir / CHECKPOINTS).glob("*")):
        for step in checkpoint.steps_in(folder)[-1:]:
            there, here = {}, identity.of(folder.name)
            with contextlib.suppress(Exception):  # a damaged checkpoint is skipped later
                there = checkpoint.read_notes(folder / f"{step:06d}")["identity"]
            if different := [name for name in there if there[name] != here.get(name)]:
                name = different[0]
                raise UserError(
                    f"{folder}: checkpoint {step} is of another search: its {name} is {there[name]!r}, here it is "
                    f"{here.get(name)!r}; choose another --workdir"
                )


def _earlier(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """The provenance of earlier processes, in order; equal neighbours are listed once."""
    last = {key: value for key, value in before.items() if key not in ("earlier", "seconds")}
    return before.get("earlier", []) + [last] * (bool(last) and last != now)
