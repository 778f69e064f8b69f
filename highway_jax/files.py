"""Atomic writes that never follow a link, checks of paths and directories, and the user's private cache folder."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# TensorStore treats a backslash as a slash and "name:/" as a storage service; Orbax finds files by glob patterns.
REFUSED = "\\*?["
PARTIAL = ".*.partial"  # files that a killed process may leave behind


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` atomically when the block ends without an error.

    A link at `path` is replaced; its target is not changed.

    Raises:
      OSError: if the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with partial.open("xb") as file:  # fails if anything has this name, even a link
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())  # otherwise, a power loss could leave an empty file under the name
            file.close()
            partial.replace(path)
            _sync(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _sync(directory: Path) -> None:
    """Flush the entries of a directory to the disk."""
    with contextlib.suppress(OSError):  # not every system can open directories
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Write a small file atomically (see `replacing`)."""
    with replacing(path) as file:
        file.write(content)


def check_path(path: str | os.PathLike) -> None:
    """Reject a path under which Orbax would store arrays elsewhere, or would not find them again.

    Raises:
      ValueError: if the absolute path has one of `\\ * ? [`, a character that cannot be printed, or a directory whose
        name ends in a colon.
    """
    absolute = Path(path).absolute()
    for part in absolute.relative_to(absolute.anchor).parts:
        if any(character in REFUSED or not character.isprintable() for character in part) or part.endswith(":"):
            raise ValueError(
                f"path is {str(path)!r}, under which arrays cannot be stored: {part!r} must have none of "
                f"{' '.join(REFUSED)}, nothing unprintable, and no colon at its end"
            )


def first_link(directory: Path) -> Path | None:
    """The first symbolic link below a directory, or None. The directory itself may be a link."""
    for folder, names, files in os.walk(directory):
        for name in sorted(names + files):
            if (path := Path(folder, name)).is_symlink():
                return path
    return None


def first_special(directory: Path) -> Path | None:
    """The first entry below a directory that is neither a file nor a directory, following links, or None.

    Opening such an entry, for example a pipe, may block forever.
    """
    for folder, _, files in os.walk(directory):
        for name in sorted(files):
            path = Path(folder, name)
            try:
                mode = path.stat().st_mode
            except OSError:  # a broken link, or a temporary file that has been removed
                continue
            if not stat.S_ISREG(mode):
                return path
    return None


def first_line(error: BaseException) -> str:
    """The type of an exception and the first line of its message."""
    said = ""
    with contextlib.suppress(Exception):  # the message of a foreign exception may fail too
        said = str(error).strip()
    return f"{type(error).__name__}: {(said.splitlines() or ['no details'])[0]}"


def user_cache() -> Path:
    """The folder `highway-jax` in the user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`).

    Raises:
      RuntimeError: if the user has no home directory.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "highway-jax"


# The files in a cache are executed. So they and their folder must belong to this user, and nobody else may write to
# them. A parent folder may also belong to root, and may let others add their own files, as /tmp does.

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def is_private(path: Path) -> bool:
    """Whether a path is a file of this user that nobody else may write to."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & OTHERS_WRITE


def make_private(folder: Path) -> None:
    """Create a private folder if it does not exist, and reject one that others can change or replace.

    Raises:
      OSError: if the folder cannot be created or is not private; the message names it, or the parent folder that lets
        others replace it.
    """
    if not hasattr(os, "geteuid"):
        raise PermissionError(f"this system does not say who can write to {folder}")
    for place in (*reversed(folder.parents), folder):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)
        status, above = place.lstat(), place != folder
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(f"{place} must be a folder, not a file or link")
        if status.st_uid != os.geteuid() and not (above and status.st_uid == 0):
            raise PermissionError(f"{place} belongs to another user")
        writers = status.st_mode & OTHERS_WRITE
        harmless = status.st_mode & stat.S_ISVTX or (writers == stat.S_IWGRP and _is_own_group(status.st_gid))
        if writers and not (above and harmless):
            raise PermissionError(f"others can write to {place}")


def _is_own_group(group: int) -> bool:
    """Whether a group has this user as its only member. Systems with a group for each user let it write by default."""
    import grp
    import pwd

    try:
        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return (user.pw_gid, user.pw_name) == (group, entry.gr_name) and set(entry.gr_mem) <= {user.pw_name}
