"""The names and formats of a workdir's files."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.app.errors import UserError
from highway_jax import checkpoint
from highway_jax.files import first_link, first_special, write_whole

# The format of workdirs. Format 4 ranked diverged runs by their losses before; format 3 did not tie checkpoints to a
# config and data.
FORMAT = 5
READABLE = (3, 4, FORMAT)  # the formats of finished workdirs that can be read
LOCK = ".lock"
CHECKPOINTS = "checkpoints"  # the folder of each network's checkpoints, until the work is finished
RESULTS = ("config.json", "runs.csv", "curves.csv", "summary.json", "provenance.json")


def has_work(workdir: Path) -> bool:
    """Whether a workdir holds results or a complete checkpoint."""
    done = any((workdir / name).exists() for name in ("runs.csv", checkpoint.SUMS))
    return done or any((workdir / CHECKPOINTS).glob(f"*/*/{checkpoint.SUMS}"))


def read_provenance(workdir: Path) -> dict[str, Any]:
    """Read a workdir's `provenance.json`; refuses a workdir in a format that this version cannot read."""
    path = workdir / "provenance.json"
    found = read_json(path) if path.exists() else {}
    check_format(workdir, found, READABLE)
    for key, kind in {"data_md5": dict, "implementations": dict, "earlier": list, "seconds": dict}.items():
        if not isinstance(found.get(key, None if found["format"] == FORMAT and key != "seconds" else kind()), kind):
            raise damaged(path, f"{key} is {found.get(key)!r}")
    for kind, value in found.get("seconds", {}).items():
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise damaged(path, f"seconds of {kind} are {value!r}")
    return found


def check_format(workdir: Path, about: Mapping[str, Any], known: Sequence[int]) -> None:
    """Refuse a workdir whose format, according to its `provenance.json`, is not `known`."""
    there = about.get("format", 1)
    if there not in known:
        raise UserError(
            f"workdir {str(workdir)!r} was written by another version, in format {there!r}; "
            f"this version reads format {' and '.join(map(str, known))}"
        )


def refuse_special(workdir: Path) -> None:
    """Refuse to read a workdir that holds a pipe, a device or a socket, before any file is opened."""
    if special := first_special(workdir):
        raise UserError(f"{special} is neither a file nor a directory; remove it from the workdir")


def refuse_links(workdir: Path) -> None:
    """Refuse to write to a workdir that holds a symbolic link, since its target is not part of the workdir."""
    if link := first_link(workdir):
        raise UserError(f"--workdir is {str(workdir)!r}, which holds a symbolic link, {str(link)!r}; remove it")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
      UserError: if the file cannot be read or holds something else; the message names it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {str(path.parent)!r} must be a workdir") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, "it is not JSON") from error
    if not isinstance(value, dict):
        raise damaged(path, "it must be a JSON object")
    return value


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_whole(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def damaged(path: Path, reason: object = "") -> UserError:
    """The error for a file that has changed since it was written, or makes no sense."""
    return UserError(f"{path} is damaged{reason and f': {reason}'}")
