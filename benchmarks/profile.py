"""Show where the time of a step goes, from XLA's own trace.

    python -m benchmarks.profile --depth=100

--depth, --runs, --batch, --width, --steps    the work, trained on one device
--rows=N                                       number of kernels to print

Prints the kernels that take the most time in an epoch, and their shares of a step. On a GPU it also prints the number
of launches and the share of time in which the device is idle. Tracing makes every kernel a little slower, small kernels
most of all. On a GPU, XLA uses no command buffers (CUDA graphs) while it traces. A kernel has the name of its HLO
instruction, or of a library's function.
"""

import dataclasses
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks import jax_contenders
from benchmarks.work import Work
from experiments.app import command_line, entry

# Events that contain other events, or wait for them.
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


@dataclasses.dataclass(frozen=True)
class Profile:
    """The kernels that ran on a device.

    Attributes:
      kernels: microseconds and number of calls by kernel.
      span: on a GPU, microseconds from the first kernel's start to the last one's end.
      busy: on a GPU, microseconds of the span in which at least one kernel ran.
    """

    kernels: dict[str, tuple[float, int]]
    span: float | None = None
    busy: float | None = None

    @property
    def total(self) -> float:
        """Microseconds of all kernels."""
        return sum(time for time, _ in self.kernels.values())

    @property
    def calls(self) -> int:
        """Number of calls of all kernels."""
        return sum(calls for _, calls in self.kernels.values())

    def largest(self, count: int) -> list[tuple[str, tuple[float, int]]]:
        """The kernels that take the most time, with their microseconds and calls."""
        return sorted(self.kernels.items(), key=lambda item: -item[1][0])[:count]


def profiled(go: Callable[[], None]) -> Profile:
    """The profile of a function that has been called, and so compiled, before."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    if jax.default_backend() != "cpu":
        options.host_tracer_level = 1  # tracing every launch on the host would delay them
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
            go()
        (file,) = Path(folder).glob("**/perfetto_trace.json.gz")
        return read(json.loads(gzip.decompress(file.read_bytes()))["traceEvents"])


def read(events: list[dict[str, Any]]) -> Profile:
    """The profile of a trace: the kernels of a GPU's streams or, without a GPU, the CPU's."""
    names = {"process_name": {}, "thread_name": {}}
    for event in events:
        if event.get("ph") == "M" and event["name"] in names:
            place = event["pid"], event.get("tid") if event["name"] == "thread_name" else None
            names[event["name"]][place] = event["args"]["name"]
    devices = {pid for (pid, _), name in names["process_name"].items() if "/device:GPU" in name}
    streams = {place for place, name in names["thread_name"].items() if place[0] in devices and "Stream" in name}
    timed = [event for event in events if event.get("ph") == "X"]
    if streams:
        timed = [event for event in timed if (event["pid"], event["tid"]) in streams]
    else:
        timed = [event for event in timed if not event["name"].startswith(OUTER)]
    kernels: dict[str, tuple[float, int]] = {}
    for event in timed:
        time, calls = kernels.get(event["name"], (0.0, 0))
        kernels[event["name"]] = time + event["dur"], calls + 1
    if not streams:
        return Profile(kernels)
    start = end = min(event["ts"] for event in timed)
    busy = 0.0
    for event in sorted(timed, key=lambda event: event["ts"]):
        after = event["ts"] + event["dur"]
        busy += max(0.0, after - max(end, event["ts"]))
        end = max(end, after)
    return Profile(kernels, end - start, busy)


def main(argv: list[str]) -> None:
    """The program."""
    values = flags.FlagValues()
    for name, default in ("depth", 100), ("runs", 2), ("batch", 100), ("width", 50), ("steps", 10), ("rows", 16):
        flags.DEFINE_integer(name, default, "", lower_bound=1, flag_values=values)
    command_line.parse_flags(argv, values)
    work = Work(values.depth, values.runs, values.batch, values.width, values.steps)
    go, pairs = jax_contenders.ours(work)
    go()
    profile = profiled(go)
    table = Table(title=f"microseconds of a run's step, depth {work.depth}", title_justify="left")
    for column in ("kernel", "a call", "calls a step", "a step", "share"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for name, (time, calls) in profile.largest(values.rows):
        row = f"{time / calls:.2f}", f"{calls / pairs:.1f}", f"{time / pairs:.0f}", f"{time / profile.total:.0%}"
        table.add_row(name, *row)
    table.add_row("all of it", "", f"{profile.calls / pairs:.1f}", f"{profile.total / pairs:.0f}", "100%")
    console = Console(width=110)
    console.print(table)
    if profile.span:
        launches = profile.calls / work.steps
        console.print(
            f"{launches:.0f} launches a step of all runs; idle {1 - profile.busy / profile.span:.0%} of the time"
        )


if __name__ == "__main__":
    entry.run(main, __doc__)
