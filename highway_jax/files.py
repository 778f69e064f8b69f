"""Files that are written whole or not at all, and never through a link; what is no file; folders of this user alone."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# TensorStore takes a backslash for a slash and "name:/" for a storage service; Orbax looks for files by glob patterns.
REFUSED = "\\*?["
PARTIAL = ".*.partial"  # what a killed process can leave of a file


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of `path` once the block has ended without an error.

    A link at `path` is replaced; what it points to stays as it is.

    Raises:
      OSError: if the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with partial.open("xb") as file:  # fails where anything has that name, a link included
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power loss may leave an empty file under the name
            file.close()
            partial.replace(path)
            _sync(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _sync(directory: Path) -> None:
    """Have the names in a directory written to the disk."""
    with contextlib.suppress(OSError):  # not every system opens directories
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Write a small file as `replacing` does."""
    with replacing(path) as file:
        file.write(content)


def check_path(path: str | os.PathLike) -> None:
    """Refuse a path under which arrays would be stored elsewhere, or not found again.

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
    """The first symbolic link below a directory, which may be one itself, or None."""
    for folder, names, files in os.walk(directory):
        for name in sorted(names + files):
            if (path := Path(folder, name)).is_symlink():
                return path
    return None


def first_special(directory: Path) -> Path | None:
    """The first thing below a directory that is neither a file nor a directory, links followed, or None.

    To open one, such as a pipe, may never return.
    """
    for folder, _, files in os.walk(directory):
        for name in sorted(files):
            path = Path(folder, name)
            try:
                mode = path.stat().st_mode
            except OSError:  # a broken link, or a temporary file that is gone by now
                continue
            if not stat.S_ISREG(mode):
                return path
    return None


def first_line(error: BaseException) -> str:
    """An exception's kind and the first line of what it says."""
    said = ""
    with contextlib.suppress(Exception):  # it may be a stranger's, and its text may fail too
        said = str(error).strip()
    return f"{type(error).__name__}: {(said.splitlines() or ['no details'])[0]}"


def user_cache() -> Path:
    """`highway-jax` in the user's cache folder (`XDG_CACHE_HOME`, or ~/.cache).

    Raises:
      RuntimeError: where there is no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "highway-jax"


# A cache's files are run. So they and their folder must belong to this user, and nobody else may write to them. A
# folder above may also belong to root, and be one where others may only add files of their own, such as /tmp.

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def is_private(path: Path) -> bool:
    """Whether it is a file of this user that nobody else may write to."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & OTHERS_WRITE


def make_private(folder: Path) -> None:
    """Make a folder for this user alone where it is missing, and refuse one that others can change or replace.

    Raises:
      OSError: naming that folder, or the one above it that lets them.
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
    """Whether it is the group of this user and nobody else. Systems that make one for each user let it write."""
    import grp
    import pwd

    try:
        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return (user.pw_gid, user.pw_name) == (group, entry.gr_name) and set(entry.gr_mem) <= {user.pw_name}
