"""Faults of a search: its process is killed, its files are damaged, the disk is full.

    python -m tests.faults        # `make stress`: 25 kills, two corruptions of every file, with figures

The tests try a few of each.
"""

import contextlib
import itertools
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from experiments.workdir.files import RESULTS
from highway_jax import checkpoint

ROOT = Path(__file__).parents[1]
SEARCH = (
    "--config=digits_depth10", "--config.depth=4", "--config.num_runs=5", "--config.epochs=4",
    "--config.batch_size=300", "--config.checkpoint_every=1",
    "--config.runs_in_memory=3", "--config.search.halving.every=2",
)  # fmt: skip


def start(workdir: Path, *args: str, shell: str = "") -> subprocess.Popen:
    """Start or resume the search in its own process, after the shell commands `shell`."""
    command = [sys.executable, "-m", "experiments.search", *SEARCH, f"--workdir={workdir}", *args]
    if shell:
        command = ["bash", "-c", shell + shlex.join(command)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(workdir: Path, *args: str) -> tuple[int, str, str]:
    """Wait until the search ends; returns its status, output and errors."""
    process = start(workdir, *args)
    output, errors = process.communicate(timeout=600)
    return process.returncode, output, errors


def results(workdir: Path) -> dict[str, bytes]:
    """The results, which must be equal to the last bit however often the search was interrupted."""
    found = {name: (workdir / name).read_bytes() for name in ("runs.csv", "curves.csv")}
    for best in (workdir / "best").iterdir():
        for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoint.restore_params(best)):
            found[f"{best.name}{jax.tree_util.keystr(path)}"] = np.asarray(leaf).tobytes()
    return found


def kill(workdir: Path, choice: random.Random, longest: float, while_writing: bool, *args: str) -> str:
    """Start or resume the search, and kill its process after a random time, or while it writes a checkpoint.

    Returns:
      Where the search was then: its newest checkpoint, with "writing" if another one was being written, or "finished".
    """
    process = start(workdir, *args)
    deadline = time.monotonic() + choice.uniform(0, longest)
    after = choice.randrange(4)  # so many checkpoints have been seen in the making
    seen: set[str] = set()
    while process.poll() is None and (while_writing or time.monotonic() < deadline):
        with contextlib.suppress(FileNotFoundError):  # they are gone at the end
            seen |= {str(path) for path in workdir.glob("checkpoints/*/*tmp*")}
        if while_writing and len(seen) > after:
            break
        time.sleep(0.0005)
    process.kill()
    process.communicate()
    if process.returncode == 0:
        return "finished"
    partial = [
        path for path in workdir.glob("checkpoints/*/*") if path.is_dir() and not (path / checkpoint.SUMS).exists()
    ]
    complete = sorted(workdir.glob("checkpoints/*/*/" + checkpoint.SUMS))
    where = "/".join(complete[-1].parts[-3:-1]) if complete else "the beginning"
    return where + (" while writing" if partial else "")


def damage(path: Path, how: str, choice: random.Random) -> None:
    """Truncate a file, empty it as a power loss may do, or flip one of its bits."""
    content = bytearray(path.read_bytes())
    if how == "empty":
        content.clear()
    elif how == "cut":
        content = content[: choice.randrange(len(content))]
    else:
        content[choice.randrange(len(content))] ^= 1 << choice.randrange(8)
    path.write_bytes(content)


def stop_halfway(workdir: Path, *args: str) -> None:
    """Kill a search once it has two checkpoints of its first network."""
    process = start(workdir, *args)
    while len(list(workdir.glob(f"checkpoints/highway/*/{checkpoint.SUMS}"))) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate()


def files_of_a_checkpoint(workdir: Path) -> list[Path]:
    """The files of the newest checkpoint that are not empty."""
    newest = sorted(workdir.glob(f"checkpoints/highway/*/{checkpoint.SUMS}"))[-1].parent
    return sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)


def main() -> None:
    """Try all faults."""
    choice = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        # Compiled once, so that kills meet training rather than the compiler.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(base / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        assert finish(base / "first")[0] == 0
        began = time.monotonic()
        assert finish(base / "undisturbed")[0] == 0
        took = time.monotonic() - began
        expected = results(base / "undisturbed")
        kill_often(base, choice, took, expected, kills=25)
        damage_everything(base, choice, expected)
        fill_the_disk(base, expected)


def kill_often(base: Path, choice: random.Random, longest: float, expected: dict[str, bytes], kills: int) -> None:
    """Kill searches, every second one while it writes a checkpoint, and resume them until they end."""
    searches = done = writing = 0
    while done < kills:
        searches += 1
        workdir = base / f"killed{searches}"
        for _ in range(8):
            where = kill(workdir, choice, longest, while_writing=done % 2 == 0)
            if where == "finished":
                break
            done += 1
            writing += "while writing" in where
            print(f"kill {done}: at {where}", flush=True)
            if done == kills:
                break
        status, _, errors = finish(workdir)
        assert (status, errors) == (0, ""), errors
        assert results(workdir) == expected, f"{workdir} differs"
    print(f"{done} kills in {searches} searches, {writing} while writing a checkpoint: all ended as if undisturbed")


def damage_everything(base: Path, choice: random.Random, expected: dict[str, bytes]) -> None:
    """Truncate, and flip a bit of, every file of a search killed halfway and of a finished search."""
    stop_halfway(base / "halfway")
    names = [path.relative_to(base) for path in files_of_a_checkpoint(base / "halfway")]
    records = [Path("halfway", name) for name in ("config.json", "provenance.json")]
    names += records
    names += [Path("undisturbed", name) for name in (*RESULTS, checkpoint.SUMS)]
    names += [max((base / "undisturbed/best").rglob("*"), key=lambda path: path.stat().st_size).relative_to(base)]
    survived = refused = 0
    for name, how in (*itertools.product(names, ("cut", "flip")), *itertools.product(records, ["empty"])):
        workdir = base / "damaged"
        shutil.copytree(base / name.parts[0], workdir)
        damage(workdir.joinpath(*name.parts[1:]), how, choice)
        status, _, errors = finish(workdir)
        assert status == 0 or how != "empty", errors
        if status == 0:
            assert "Traceback" not in errors, errors
            assert results(workdir) == expected, f"{how} {name}: wrong results"
            survived += 1
        else:
            assert (status, errors.count("\n")) == (2, 1), errors
            refused += 1
        print(f"{how} {name}: {errors.strip().replace(str(base), '') or 'no effect'}", flush=True)
        shutil.rmtree(workdir)
    print(f"{survived + refused} corruptions: {survived} survived with the same results, {refused} refused in one line")


def fill_the_disk(base: Path, expected: dict[str, bytes]) -> None:
    """Make checkpoints fail in the background by a limit on the size of files, and resume without the limit."""
    for limit in 8, 64:
        workdir = base / f"full{limit}"
        process = start(workdir, shell=f"ulimit -f {limit}; ")
        _, errors = process.communicate(timeout=600)
        assert (process.returncode, errors.count("\n")) == (2, 1), errors
        assert "a checkpoint cannot be written" in errors, errors
        status, _, errors = finish(workdir)
        assert (status, errors) == (0, ""), errors
        assert results(workdir) == expected, f"{workdir} differs"
        print(f"no file above {limit} KiB: stopped in one line, and went on", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
