"""Measure a process's memory against the number of runs that it trains, on the job of the first example.

    python -m benchmarks.memory

--runs=N,...    numbers of runs, each measured in its own process
--epochs=N      epochs of every run
--out=DIR       where memory.json goes; by default benchmarks/results

`fit` trains as many runs side by side as half a gigabyte holds, and the others after them.
"""

import json
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.app import command_line, entry
from experiments.app.errors import UserError
from experiments.app.machine import hardware
from highway_jax import parallel


def serve(connection: Connection, runs: int, epochs: int) -> None:
    """Train the runs, and send the time and memory that this took."""
    parallel.split_cpu()
    from examples import tabular_regression
    from highway_jax import population

    began = time.perf_counter()
    parts = 0

    def note(progress: population.Progress) -> None:
        nonlocal parts
        parts = progress.plan[-1].part + 1

    result = population.fit(
        tabular_regression.TASK,
        tabular_regression.SPACE,
        train=tabular_regression.DATA["train"],
        evaluate={"valid": tabular_regression.DATA["valid"]},
        num_runs=runs,
        epochs=epochs,
        batch_size=100,
        rank_by="valid_loss",
        progress=note,
    )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    connection.send({"runs": runs, "parts": parts, "seconds": seconds, "peak_mib": peak, "best": repr(result)})


def main(argv: list[str]) -> None:
    """The program."""
    values = flags.FlagValues()
    flags.DEFINE_list("runs", ["1000", "10000", "20000"], "", flag_values=values)
    flags.DEFINE_integer("epochs", 1, "", lower_bound=1, flag_values=values)
    command_line.define_path("out", "benchmarks/results", "", values)
    command_line.parse_flags(argv, values)
    if not all(runs.isdigit() and int(runs) for runs in values.runs):
        raise UserError(f"--runs is {','.join(values.runs)!r}; it must be integers of at least 1")
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for runs in map(int, values.runs):
        connection, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, runs, values.epochs), daemon=True)
        process.start()
        theirs.close()
        rows.append(connection.recv())
        process.join()
    table = Table(title=f"epochs: {values.epochs}", title_justify="left")
    for column in ("runs", "parts", "seconds", "peak memory"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(f"{row['runs']:,}", str(row["parts"]), f"{row['seconds']:.1f}", f"{row['peak_mib']:,.0f} MiB")
    Console(width=100).print(table)
    out = Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    written = {"machine": hardware(), "epochs": values.epochs, "rows": rows}
    (out / "memory.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    entry.run(main, __doc__)
