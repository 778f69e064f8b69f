"""Time a population of highway networks against what a user would write instead, and against the machine's limits.

    pip install -e '.[bench]'
    python -m benchmarks.population                      # depth 100, 100 runs, batch 100, width 50
    python -m benchmarks.population --depth=10,50,100 --scaling

--depth, --runs, --batch, --width, --steps    the work; --depth takes a list
--runs_per_batch=N how many runs ours trains in lockstep on a device; by default as many as a search
--repetitions=N    repetitions of every contender, interleaved; the median counts
--only=NAME,...    only these contenders; by default all that make sense on a CPU
--scaling          also time ours against runs (1 to 256) and depth (10 to 1000), and plot the times
--out=DIR          where the JSON files and the figure go; by default benchmarks/results

Every contender runs in its own process, set up as its users would do it; ours sees a CPU device per core. Times are
milliseconds per run and step. The limit is the time that the machine's measured rates allow.
"""

import dataclasses
import importlib
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from absl import flags
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.jax_contenders import Contender
from benchmarks.work import Work
from experiments.app import command_line, entry
from experiments.app.errors import UserError
from experiments.app.machine import hardware
from highway_jax import parallel
from highway_jax.plotting import COLORS, plain_ticks, style
from highway_jax.stack import fused

CONTENDERS = {
    "ours": "highway-jax, as the search runs it",
    "ours_xla": "highway-jax, with XLA alone",
    "ours_xla_tf32": "highway-jax, with XLA alone, products in TF32",
    "ours_xla_tf32x3": "highway-jax, with XLA alone, products in three times TF32",
    "ours_xla_bf16": "highway-jax, with XLA alone, products in bfloat16",
    "jax_loop": "JAX, one run after another",
    "jax_vmap": "JAX, vmap over runs, plain autodiff",
    "torch_loop": "PyTorch, nn.Module, one run after another",
    "torch_compile": "PyTorch, the same with torch.compile",
    "torch_bmm": "PyTorch, all runs batched by hand",
    "torch_graph": "PyTorch, the same as a CUDA graph",
    "torch_vmap": "PyTorch, torch.func.vmap over runs",
}
ACCELERATORS = ("ours_xla_tf32", "ours_xla_tf32x3", "ours_xla_bf16", "torch_graph")  # not for a CPU


def serve(connection: Connection, name: str, work: Work) -> None:
    """A contender's process: set up, send the time of the first repetition, then repeat on request."""
    try:
        if name.startswith("ours"):
            parallel.split_cpu()
        go, pairs = contender(name)(work)
        start = time.perf_counter()
        go()
        first = time.perf_counter() - start
        go()
        connection.send({"first_seconds": first, "pairs": pairs})
        while connection.recv():
            start = time.perf_counter()
            go()
            connection.send(time.perf_counter() - start)
        end = {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "device": device(name)}
        connection.send({**end, "implementation": fused.choose(work.width)} if name == "ours" else end)
    except Exception as error:
        connection.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


def contender(name: str) -> Callable[[Work], Contender]:
    """The contender of a name."""
    module = importlib.import_module(f"benchmarks.{'torch' if name.startswith('torch') else 'jax'}_contenders")
    return getattr(module, name)


def timed(go: Callable[[], None], pairs: int, repetitions: int) -> dict[str, float]:
    """A contender's figures, in milliseconds per run and step, timed in this process."""
    times = []
    for _ in range(2 + repetitions):
        start = time.perf_counter()
        go()
        times.append(time.perf_counter() - start)
    first, _, *rest = times
    return figures(first, rest, pairs)


def figures(first: float, times: list[float], pairs: int) -> dict[str, float]:
    """Figures per (run, step) pair, from the seconds of the first repetition and of those that count."""
    ms = [1e3 * seconds / pairs for seconds in times]
    return {
        "ms": statistics.median(ms),
        "ms_min": min(ms),
        "ms_max": max(ms),
        "first_seconds": first,
        "repetition_seconds": statistics.median(times),
    }


def device(name: str) -> str:
    """The device that a contender ran on."""
    if name.startswith("torch"):
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


class Process:
    """A contender in its own process."""

    def __init__(self, name: str, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, work), daemon=True)
        self.process.start()
        theirs.close()
        self.setup = self._receive()
        self.times: list[float] = []

    def _receive(self) -> Any:
        try:
            answer = self.connection.recv()
        except EOFError:
            answer = {"error": "the process died"}
        return answer

    @property
    def failed(self) -> bool:
        return "error" in self.setup

    def repeat(self) -> None:
        """Time one repetition."""
        self.connection.send(True)
        self.times.append(self._receive())

    def finish(self) -> dict[str, Any]:
        """End the process; returns its figures, in milliseconds per run and step."""
        if self.failed:
            return {"error": self.setup["error"]}
        self.connection.send(False)
        end = self._receive()
        self.process.join()
        return figures(self.setup["first_seconds"], self.times, self.setup["pairs"]) | end


def compare(work: Work, names: list[str], repetitions: int) -> dict[str, Any]:
    """Time contenders against each other, interleaved so that a drift of the machine affects all alike."""
    processes = {}
    for name in names:
        print(f"setting up {name}", file=sys.stderr)
        processes[name] = Process(name, work)
    for _ in range(repetitions):
        for process in processes.values():
            if not process.failed:
                process.repeat()
    return {name: process.finish() for name, process in processes.items()}


def measure_limit(connection: Connection) -> None:
    """Measure the machine's rates, in a separate process."""
    from benchmarks import limit

    connection.send({"gemm_flops": limit.gemm_flops(), "copy_bytes": limit.copy_bytes()})


def limit_ms(work: Work, rates: dict[str, float], backend: str) -> float:
    """Milliseconds per run and step that the rates allow. Memory traffic counts on a GPU; a CPU's caches hide it."""
    products = work.flops() / rates["gemm_flops"]
    return 1e3 * (products if backend == "cpu" else max(products, work.bytes() / rates["copy_bytes"]))


def label_of(device: str) -> str:
    """The name of a device, as `device` returns it, in file names."""
    return device.split(" x ")[-1].replace(" ", "_").lower()


def report(
    work: Work, machine: dict[str, Any], device: str, rates: dict[str, float], contenders: dict[str, Any]
) -> dict[str, Any]:
    """The contents of a result file, which `experiments.plan` reads."""
    return {
        "machine": machine,
        "device": device,
        "work": dataclasses.asdict(work),
        "flops_per_run_step": work.flops(),
        "bytes_per_run_step": work.bytes(),
        "rates": rates,
        "limit_ms": limit_ms(work, rates, "cpu" if device.endswith("cpu") else "gpu"),
        "contenders": contenders,
    }


def print_table(result: dict[str, Any], console: Console) -> None:
    """Print the figures of one result file."""
    work, limit = result["work"], result["limit_ms"]
    table = Table(
        title=f"depth {work['depth']}, {work['runs']} runs, batch {work['batch']}, width {work['width']}: "
        "milliseconds per run and step",
        title_justify="left",
    )
    for column in ("", "median", "min to max", "ours is faster by", "of the limit", "first call", "peak memory"):
        table.add_column(column, justify="left" if not column else "right")
    reference = result["contenders"].get("ours", {}).get("ms")
    for name, figures in result["contenders"].items():
        if "error" in figures:
            table.add_row(CONTENDERS[name], figures["error"][:60])
            continue
        table.add_row(
            CONTENDERS[name],
            f"{figures['ms']:.3g}",
            f"{figures['ms_min']:.3g} to {figures['ms_max']:.3g}",
            f"{figures['ms'] / reference:.1f}x" if reference else "",
            f"{limit / figures['ms']:.0%}",
            f"{figures['first_seconds']:.1f} s",
            f"{figures['peak_mib']:.0f} MiB",
        )
    table.add_row(f"the limit: {result['rates']['gemm_flops'] / 1e9:.0f} GFLOP/s", f"{limit:.3g}", "", "", "100%")
    console.print(table)


def scaling(work: Work, repetitions: int) -> dict[str, list[dict[str, Any]]]:
    """Time ours with growing numbers of runs and growing depth."""
    works = {
        "runs": [dataclasses.replace(work, runs=runs) for runs in (1, 4, 16, 64, 256)],
        "depth": [dataclasses.replace(work, depth=d, runs=min(work.runs, 16)) for d in (10, 30, 100, 300, 1000)],
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for axis, variants in works.items():
        rows[axis] = []
        for variant in variants:
            figures = compare(variant, ["ours"], repetitions)["ours"]
            # The first call takes longer than a repetition because it compiles.
            compile_seconds = figures["first_seconds"] - figures["repetition_seconds"]
            rows[axis].append({**dataclasses.asdict(variant), **figures, "compile_seconds": compile_seconds})
            print(f"{axis} {getattr(variant, axis)}: {figures['ms']:.3g} ms per run and step", file=sys.stderr)
    return rows


def scaling_figure(rows: dict[str, list[dict[str, Any]]]) -> Figure:
    """Plot the time per step and the peak memory, log-log."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    color = COLORS["highway"]
    for axes, axis, look in zip(panels, rows, ("o-", "s--"), strict=False):
        x = [row[axis] for row in rows[axis]]
        y = [row["ms"] * row["runs"] for row in rows[axis]]
        axes.loglog(x, y, "o-", color=color, linewidth=2, label="measured")
        axes.loglog(x, [y[-1] * v / x[-1] for v in x], "--", color="0.6", linewidth=1, label="linear")
        fixed = rows[axis][0]["depth"] if axis == "runs" else rows[axis][0]["runs"]
        title = f"time, depth {fixed}" if axis == "runs" else f"time, {fixed} runs"
        style(axes, title, "runs" if axis == "runs" else "depth (layers)", "milliseconds per step of all runs")
        axes.legend(frameon=False)
        label = f"runs, at depth {fixed}" if axis == "runs" else f"depth, of {fixed} runs"
        panels[2].loglog(x, [row["peak_mib"] for row in rows[axis]], look, color=color, linewidth=2, label=label)
    style(panels[2], "memory", "runs, or depth (layers)", "peak memory of the process (MiB)")
    plain_ticks(panels[2].yaxis)
    panels[2].legend(frameon=False)
    return figure


def main(argv: list[str]) -> None:
    """The program."""
    values = flags.FlagValues()
    flags.DEFINE_list("depth", ["100"], "", flag_values=values)
    for name, default in ("runs", 100), ("batch", 100), ("width", 50), ("steps", 30), ("repetitions", 5):
        flags.DEFINE_integer(name, default, "", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("runs_per_batch", None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_list("only", [name for name in CONTENDERS if name not in ACCELERATORS], "", flag_values=values)
    flags.DEFINE_bool("scaling", False, "", flag_values=values)
    command_line.define_path("out", "benchmarks/results", "", values)
    command_line.parse_flags(argv, values)
    if unknown := set(values.only) - set(CONTENDERS):
        raise UserError(f"--only has {min(unknown)!r}; it must be some of {', '.join(CONTENDERS)}")
    if not all(depth.isdigit() and int(depth) >= 2 for depth in values.depth):
        raise UserError(f"--depth is {','.join(values.depth)!r}; it must be integers of at least 2")

    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=measure_limit, args=(theirs,), daemon=True)
    process.start()
    rates = connection.recv()
    process.join()

    out = Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    machine = hardware()
    console = Console(width=150)
    label = None
    for depth in map(int, values.depth):
        work = Work(depth, values.runs, values.batch, values.width, values.steps, values.runs_per_batch)
        contenders = compare(work, values.only, values.repetitions)
        kind = next((f["device"] for f in contenders.values() if "device" in f), "cpu")
        label = label_of(kind)
        result = report(work, machine, kind, rates, contenders)
        print_table(result, console)
        (out / f"population_{label}_depth{depth}.json").write_text(json.dumps(result, indent=2) + "\n")
    if values.scaling:
        work = Work(int(values.depth[-1]), values.runs, values.batch, values.width, values.steps, values.runs_per_batch)
        rows = scaling(work, values.repetitions)
        (out / f"scaling_{label}.json").write_text(json.dumps({"machine": machine, **rows}, indent=2) + "\n")
        scaling_figure(rows).savefig(out / f"scaling_{label}.png", dpi=130)


if __name__ == "__main__":
    entry.run(main, __doc__)
