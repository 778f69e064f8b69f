"""Searches on several processes, each with its own CPU devices, as on several hosts.

    python -m tests.hosts      # `make stress`: topologies, moves between them, lost hosts

The tests try a few of each.
"""

import csv
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from highway_jax import checkpoint

ROOT = Path(__file__).parents[1]
SEARCH = (
    "--config=digits_depth10", "--config.depth=3", "--config.num_runs=6", "--config.epochs=4",
    "--config.batch_size=300", "--config.checkpoint_every=1",
)  # fmt: skip
PROGRAM = """
import sys
from highway_jax import parallel
parallel.split_cpu(int(sys.argv.pop(1)))
from experiments.app import entry
from experiments import search
entry.run(search.main, search.__doc__)
"""


def start(workdir: Path, processes: int, devices: int, *args: str) -> list[subprocess.Popen]:
    """Start or resume the search on processes with several devices each; NUMBER stands for a process's number."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", PROGRAM, str(devices), *SEARCH, f"--workdir={workdir}", *args]
    cluster = [f"--coordinator={coordinator}", f"--num_processes={processes}"] if processes > 1 else []
    return [
        subprocess.Popen(
            [
                part.replace("NUMBER", str(number))
                for part in command + cluster + ["--process_id=NUMBER"] * bool(cluster)
            ],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def end(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Wait until the processes end; returns the status, output and errors of each."""
    ends = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        ends.append((process.returncode, output, errors))
    return ends


def search(workdir: Path, processes: int, devices: int, *args: str) -> None:
    """Search to the end; only the first process may print anything."""
    for number, (status, output, errors) in enumerate(end(start(workdir, processes, devices, *args))):
        assert (status, errors) == (0, ""), errors
        assert ("Figure 1" in output) == (number == 0), output


def read(workdir: Path, name: str) -> list[list[str]]:
    """The rows of a table."""
    with (workdir / name).open(newline="") as file:
        return list(csv.reader(file))


def assert_same(workdir: Path, expected: Path) -> None:
    """Check that the tables of two searches are equal, rankings included, with losses equal up to float32 rounding."""
    for name in ("runs.csv", "curves.csv"):
        ours, theirs = read(workdir, name), read(expected, name)
        assert len(ours) == len(theirs)
        assert ours[0] == theirs[0]
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            for column, a, b in zip(ours[0], mine, other, strict=True):
                if column in ("best_loss", "final_loss", "train_loss"):
                    np.testing.assert_allclose(float(a), float(b), rtol=1e-4)
                else:
                    assert a == b, (workdir, name, column, a, b)


def wait_for_checkpoints(workdir: Path, count: int, processes: list[subprocess.Popen]) -> None:
    """Wait until a network has this many more complete checkpoints (up to three)."""

    def complete() -> set[Path]:
        return set(workdir.glob(f"checkpoints/highway/*/{checkpoint.SUMS}"))

    before = complete()
    while len(complete() - before) < count:
        assert all(process.poll() is None for process in processes), end(processes)
        time.sleep(0.005)


def lose(workdir: Path, processes: int, number: int, how: signal.Signals = signal.SIGKILL) -> float:
    """Kill or freeze one process of a search; returns the seconds until all others have stopped."""
    running = start(workdir, processes, 1, "--config.epochs=400")
    wait_for_checkpoints(workdir, 1, running)
    lost = running.pop(number)
    lost.send_signal(how)
    lost_at = time.monotonic()
    ends = end(running)
    seconds = time.monotonic() - lost_at
    lost.kill()
    lost.communicate()
    for status, _, errors in ends:
        assert (status, errors.count("\n")) == (1, 1), errors
        assert errors.startswith("error: another process has ended or cannot be reached"), errors
    return seconds


def main() -> None:
    """Run all checks."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(base / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        search(base / "alone", 1, 1)
        lose_hosts(base)
        compare_topologies(base)
        move_between_topologies(base)
        guide(base)


def compare_topologies(base: Path) -> None:
    """The same search on several topologies."""
    topologies = [(1, 8, None), (1, 8, (2, 4)), (2, 1, None), (2, 2, (2, 2)), (2, 1, (1, 2)), (4, 1, None)]
    for index, (processes, devices, mesh) in enumerate(topologies):
        search(base / str(index), processes, devices, *([f"--config.mesh={mesh}"] if mesh else []))
        assert_same(base / str(index), base / "alone")
        print(f"{processes} processes of {devices} devices, mesh {mesh}: the same", flush=True)


def move_between_topologies(base: Path) -> None:
    """Stop a search on one topology of (processes, devices), and resume it on another."""
    for before, after in ((1, 8), (1, 1)), ((1, 1), (2, 1)), ((2, 1), (1, 1)), ((4, 1), (3, 1)):
        workdir = base / f"moved{before}{after}"
        running = start(workdir, *before)
        wait_for_checkpoints(workdir, 1, running)
        running[-1].send_signal(signal.SIGTERM)  # one is told: all stop
        for status, _, errors in end(running):
            assert (status, "after epoch" in errors) == (128 + signal.SIGTERM, True), errors
        search(workdir, *after)
        assert_same(workdir, base / "alone")
        print(f"from (processes, devices) {before} to {after} in mid-search: the same", flush=True)


def guide(base: Path) -> None:
    """A guided search on one process and on two; only the first process writes the study."""
    guided = "--config.sampler=tpe", "--config.runs_in_memory=2"
    for processes in 1, 2:
        search(base / f"guided{processes}", processes, 1, *guided)
    assert_same(base / "guided2", base / "guided1")
    print("a guided search of 2 processes: the same", flush=True)


def lose_hosts(base: Path) -> None:
    """Kill or freeze one of four processes, and resume with four and with three."""
    for number, how, then in (3, signal.SIGKILL, 3), (0, signal.SIGKILL, 4), (1, signal.SIGSTOP, 3):
        workdir = base / f"lost{number}"
        seconds = lose(workdir, 4, number, how)
        assert seconds < 60
        print(f"process {number} of 4, {how.name}: the others stopped within {seconds:.0f} s", flush=True)
        running = start(workdir, then, 1, "--config.epochs=400")
        wait_for_checkpoints(workdir, 1, running)
        for process in running:
            process.send_signal(signal.SIGTERM)
        assert {status for status, _, _ in end(running)} == {128 + signal.SIGTERM}
        print(f"  and {then} went on", flush=True)


if __name__ == "__main__":
    main()
