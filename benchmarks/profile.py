"""Where a step's time goes, from XLA's own trace.

    python -m benchmarks.profile --depth=100

--depth, --runs, --batch, --width, --steps    the work, trained on one device
--rows=N                                       how many kernels to print

Prints the kernels that take most of an epoch, with their share of a run's step. Tracing makes every kernel a
little slower, small ones most. A kernel's name is its HLO instruction's.
"""

import collections
import gzip
import json
import tempfile
from pathlib import Path

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks import jax_contenders
from benchmarks.work import Work
from experiments.app import command_line, entry

# What contains other rows, or waits for them.
OUTER = (
    "ThunkExecutor",
    "np.asarray",
    "$",
    "Pjit",
    "PjRt",
    "CommonPjRt",
    "while",
    "call",
    "Execute",
    "TfrtCpu",
    "ParseArguments",
)


def kernel_times(work: Work) -> dict[str, tuple[float, int]]:
    """Microseconds and calls of every kernel in one epoch."""
    go, _ = jax_contenders.ours(work)
    go()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            go()
        (file,) = Path(folder).glob("**/perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    times: dict[str, float] = collections.Counter()
    calls: dict[str, int] = collections.Counter()
    for event in events:
        if event.get("ph") == "X":
            times[event["name"]] += event["dur"]
            calls[event["name"]] += 1
    return {name: (times[name], calls[name]) for name in times if not name.startswith(OUTER)}


def main(argv: list[str]) -> None:
    """The program."""
    values = flags.FlagValues()
    for name, default in ("depth", 100), ("runs", 2), ("batch", 100), ("width", 50), ("steps", 10), ("rows", 16):
        flags.DEFINE_integer(name, default, "", lower_bound=1, flag_values=values)
    command_line.parse_flags(argv, values)
    work = Work(values.depth, values.runs, values.batch, values.width, values.steps)
    kernels = kernel_times(work)
    total = sum(time for time, _ in kernels.values())
    pairs = work.runs * work.steps
    table = Table(title=f"microseconds of a run's step, depth {work.depth}", title_justify="left")
    for column in ("kernel", "a call", "calls a step", "a step", "share"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for name, (time, calls) in sorted(kernels.items(), key=lambda item: -item[1][0])[: values.rows]:
        row = f"{time / calls:.2f}", f"{calls / pairs:.1f}", f"{time / pairs:.0f}", f"{time / total:.0%}"
        table.add_row(name, *row)
    table.add_row("all of it", "", "", f"{total / pairs:.0f}", "100%")
    Console(width=110).print(table)


if __name__ == "__main__":
    entry.run(main, __doc__)
