"""Run a program and report errors in one line."""

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
# Errors of the machine rather than of a file: no space, too many open files, no memory.
LACKING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
DEBUG = "--debug"


def run(main: Callable[[list[str]], None], usage: str) -> NoReturn:
    """Run a program and exit with its status.

    The status is 0 when the program is done, 2 after a user's mistake, 128 + N after signal N, and 1 after a bug, the
    loss of another process, or a failure to write the output. Every error is one line on stderr; `--debug` adds the
    traceback. A file that cannot be read or written is the user's mistake unless it belongs to the code. `--help`
    prints `usage`, the program's docstring, instead of running the program.
    """
    with unfailing() as out:
        _run(main, usage)
        if out is not None:
            out.flush()
            if out.failure:
                _fail(1, f"error: the work is done, but its output could not be written: {out.failure}")
    sys.exit(0)


def _run(main: Callable[[list[str]], None], usage: str) -> None:
    logging.set_verbosity(logging.FATAL)  # the programs report what TFDS warns of themselves
    sys.unraisablehook = _main_thread_only
    getLogger("asyncio").disabled = True  # Orbax's tasks: a failure is reported where the save is waited for
    try:
        if any(arg in ("-h", "--help") for arg in sys.argv[1:]):
            say(f"{usage.strip()}\n\n{DEBUG}                print the traceback of an error as well")
        else:
            main([arg for arg in sys.argv[1:] if arg != DEBUG])
    except (UserError, DataError) as error:
        _fail(2, f"error: {error}")
    except Elsewhere:
        _fail(2)
    except ProcessLost as error:
        _fail(1, f"error: {error}; the same command resumes from the last checkpoint")
    except Interrupted as stop:
        print(f"interrupted {stop}", file=sys.stderr, flush=True)
        jax.distributed.shutdown()  # waits for all processes
        os._exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        # At once, since XLA's threads may still run and must not outlive the interpreter.
        os._exit(130)
    except Exception as error:
        if isinstance(error, OSError) and _is_users(error):
            _fail(2, f"error: {_text(error.filename or 'a file')}: {error.strerror or error}")
        _fail(1, f"internal error: {first_line(error)}, in {_place(error)}; {DEBUG} prints the traceback")


def _is_users(error: OSError) -> bool:
    """Whether the user can correct an error about a file."""
    if error.filename is None:
        return error.errno in LACKING
    path = Path(_text(error.filename)).absolute()
    return not any(path.is_relative_to(code) for code in CODE)


def _text(path: Any) -> str:
    """A path or a file descriptor as text."""
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)


def _place(error: Exception) -> str:
    """The place in this project's code where an error came up."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in FOLDERS:
            return f"{path.relative_to(ROOT)}, line {frame.lineno}"
    return "code of another project"


def _fail(status: int, *lines: str) -> NoReturn:
    """Exit with lines on stderr. One of several processes exits at once; an orderly exit would wait for the others."""
    if DEBUG in sys.argv and sys.exc_info()[0]:
        traceback.print_exc()
    for line in lines:
        print(as_line(line), file=sys.stderr, flush=True)
    if not jax.distributed.is_initialized():
        sys.exit(status)
    with contextlib.suppress(RuntimeError):  # there may be no device
        if jax.process_index() == 0:
            time.sleep(3)  # JAX's coordinator ends with this process and aborts others before they report their error
    os._exit(status)


def _main_thread_only(error: Any) -> None:
    """Ignore errors in other threads, such as one that writes checkpoints; they are raised with the thread's result."""
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(error)
