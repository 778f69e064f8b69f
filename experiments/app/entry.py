"""Run a program, and report what goes wrong in a line."""

import contextlib
import errno
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import logging

from experiments.app.errors import Interrupted, UserError, as_line
from experiments.app.output import say, unfailing
from highway_jax.data import DataError
from highway_jax.files import first_line
from highway_jax.parallel import Elsewhere, ProcessLost

ROOT = Path(__file__).parents[2]  # of the clone, or site-packages
FOLDERS = ("experiments", "highway_jax", "benchmarks", "tests")
CODE = (ROOT / "experiments", ROOT / "highway_jax", Path(sys.prefix))
# What a machine lacks for which no file is to blame.
LACKING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
DEBUG = "--debug"


def run(main: Callable[[list[str]], None], usage: str) -> NoReturn:
    """Run a program and exit: 0 when done, 2 with one line for a user's mistake, 128 + N after signal N,
    1 with one line when another process of several is lost, the output could not be written, or for a bug.

    A file that cannot be read or written counts as the user's to mend, unless it is one of the code's. `--debug` shows
    the traceback of what goes wrong as well. `--help` prints `usage`, the program's docstring, instead.
    """
    with unfailing() as out:
        _run(main, usage)
        if out is not None:
            out.flush()
            if out.failure:
                _fail(1, f"error: the work is done, but its output could not be written: {out.failure}")
    sys.exit(0)


def _run(main: Callable[[list[str]], None], usage: str) -> None:
    logging.set_verbosity(logging.FATAL)  # TFDS warns of what is reported here in words of our own
    sys.unraisablehook = _main_thread_only
    getLogger("asyncio").disabled = True  # Orbax's tasks: what failed in one is reported where a save is waited for
    try:
        if any(arg in ("-h", "--help") for arg in sys.argv[1:]):
            say(f"{usage.strip()}\n\n{DEBUG}                shows where in the code an error comes from")
        else:
            main([arg for arg in sys.argv[1:] if arg != DEBUG])
    except (UserError, DataError) as error:
        _fail(2, f"error: {error}")
    except Elsewhere:
        _fail(2)
    except ProcessLost as error:
        _fail(1, f"error: {error}; the same command goes on from the last checkpoint")
    except Interrupted as stop:
        print(f"interrupted {stop}", file=sys.stderr, flush=True)
        jax.distributed.shutdown()  # waits for all processes
        os._exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        # At once: XLA's threads may be at work, and the interpreter's end would pull the ground from under them.
        os._exit(130)
    except Exception as error:
        if isinstance(error, OSError) and _is_users(error):
            _fail(2, f"error: {_text(error.filename or 'a file')}: {error.strerror or error}")
        _fail(1, f"internal error: {first_line(error)}, in {_place(error)}; {DEBUG} shows more")


def _is_users(error: OSError) -> bool:
    """Whether the user can mend what is wrong with a file."""
    if error.filename is None:
        return error.errno in LACKING
    path = Path(_text(error.filename)).absolute()
    return not any(path.is_relative_to(code) for code in CODE)


def _text(path: Any) -> str:
    """A path or a file's number as text."""
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)


def _place(error: Exception) -> str:
    """Where in this project's code an error was met."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in FOLDERS:
            return f"{path.relative_to(ROOT)}, line {frame.lineno}"
    return "code of another project"


def _fail(status: int, *lines: str) -> NoReturn:
    """Exit with a line on stderr. One of several processes does so at once: an orderly end would wait for all."""
    if DEBUG in sys.argv and sys.exc_info()[0]:
        traceback.print_exc()
    for line in lines:
        print(as_line(line), file=sys.stderr, flush=True)
    if not jax.distributed.is_initialized():
        sys.exit(status)
    with contextlib.suppress(RuntimeError):  # there may be no device
        if jax.process_index() == 0:
            time.sleep(3)  # with it goes JAX's coordinator, and that aborts those who have not had their say
    os._exit(status)


def _main_thread_only(error: Any) -> None:
    """What fails in a thread, such as one that writes a checkpoint, is reported where its result is asked for."""
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(error)
