"""Time ways to train many small networks against each other, on the jobs of two examples.

    python -m benchmarks.frameworks

--only=NAME,...        only these contenders
--job=NAME             only this job: regression (200 runs, 60 epochs) or classifier (100 runs, 20 epochs)
--runs=N, --epochs=N   numbers of runs and epochs, in place of the job's
--repetitions=N        timed epochs of every contender, interleaved; the median counts
--out=DIR              where frameworks.json goes; by default benchmarks/results

Contenders: ours, vmap, lax_map, shard_map, torch_vmap, optuna, hyperoptax, turbanet. Each runs in its own process; ours
and shard_map see a CPU device per core. All train the same networks on the same data and evaluate every split after
every epoch. The exception is TurbaNet, which trains one configuration in all runs, without dropout. PyTorch's networks
start from PyTorch's initial weights. Optuna trains one run after another; a few runs are timed, and the figures are
scaled to all runs. hyperoptax trains whole runs in one call; the call's figures are divided by the number of epochs,
and its first call is a whole job. CPU seconds are the user and system time of all threads of a contender's process.
Lines of code are those of a contender's own functions, without networks, data, blank lines, comments and docstrings.

`pip install -e '.[bench]'` installs PyTorch. The other two libraries are needed for nothing else and are installed by
hand: `pip install hyperoptax turbanet`. (TurbaNet 0.3.1 requires Python 3.12, but also runs on 3.11 if it is installed
with --ignore-requires-python.)
"""

import ast
import inspect
import io
import json
import multiprocessing
import resource
import statistics
import sys
import time
import tokenize
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.app import command_line, entry
from experiments.app.errors import UserError
from experiments.app.machine import hardware
from highway_jax import parallel

JOBS = {"regression": (200, 60), "classifier": (100, 20)}
ONE = "one"  # stands for the class that defines a run of the job
MAPPED = (ONE, "train_and_evaluate", "start", "loop")


class Contender(NamedTuple):
    """A way to train many networks.

    Attributes:
      label: its name in tables.
      functions: what its user writes besides the contender's own function.
      resume: whether it resumes after it was killed.
      replay: whether it can train a run again by itself.
      best: whether it keeps the best run's parameters.
      table: whether it gives a table of all runs.
    """

    label: str
    functions: tuple[str, ...] = ()
    resume: str = "no"
    replay: str = "no"
    best: str = "no"
    table: str = "no"


CONTENDERS = {
    "ours": Contender("highway-jax, fit", (), "exactly", "yes", "yes", "yes"),
    "vmap": Contender("JAX, vmap over runs", MAPPED),
    "lax_map": Contender("JAX, lax.map over runs", MAPPED),
    "shard_map": Contender("JAX, shard_map and lax.map", MAPPED),
    "torch_vmap": Contender("PyTorch, torch.func.vmap over runs", ("torch_numbers", "torch_adamw")),
    "optuna": Contender("Optuna, one run after another", (ONE, "train_and_evaluate"), "by runs", "no", "no", "yes"),
    "hyperoptax": Contender("hyperoptax, RandomSearch", (ONE, "train_and_evaluate")),
    "turbanet": Contender("TurbaNet, a smaller job"),
}


def function_of(name: str, job: str) -> str:
    """The name of the contender's own function."""
    return f"ours_{job}" if name == "ours" else name


def lines_of_code(name: str, job: str) -> int:
    """The number of lines that the contender's user writes."""
    from benchmarks import framework_contenders

    names = [function_of(name, job), *CONTENDERS[name].functions]
    names = [("Regression" if job == "regression" else "Classifier") if name == ONE else name for name in names]
    return sum(code_lines(inspect.getsource(getattr(framework_contenders, name))) for name in names)


def code_lines(source: str) -> int:
    """The number of lines of a function or class, without blank lines, comments and docstrings."""
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in ignored:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def serve(connection: Connection, name: str, job: str, runs: int, epochs: int, repetitions: int) -> None:
    """A contender's process: after each unit of work it sends the time taken, and waits until it may continue."""
    try:
        if name in ("ours", "shard_map"):
            parallel.split_cpu()
        from benchmarks import framework_contenders

        # Contenders that train whole runs train all epochs. The others train only as many as are timed.
        by_runs = name == "optuna"
        whole = by_runs or name == "hyperoptax"
        work = getattr(framework_contenders, job)(
            min(runs, repetitions + 1) if by_runs else runs, epochs if whole else repetitions + 1
        )
        began = time.perf_counter(), time.process_time()

        def tick(pairs: int) -> None:
            nonlocal began
            took, worked = time.perf_counter() - began[0], time.process_time() - began[1]
            connection.send({"seconds": took * runs / pairs, "cpu_seconds": worked * runs / pairs, "all": took})
            connection.recv()
            began = time.perf_counter(), time.process_time()

        curves = getattr(framework_contenders, function_of(name, job))(work, tick)
        losses = curves["valid_loss"]
        connection.send(
            {
                "end": True,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "median_valid_loss": float(statistics.median(losses[:, -1].tolist())),
                "epochs_trained": epochs if whole else losses.shape[1],
            }
        )
    except Exception as error:
        said = str(error).splitlines()
        connection.send({"error": f"{type(error).__name__}: {said[0] if said else ''}"})


class Process:
    """A contender in its own process, which works only on request."""

    def __init__(self, name: str, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.times: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
        self.figures: dict[str, Any] = {}
        self.first: float | None = None
        self._receive()

    def _receive(self) -> None:
        try:
            answer = self.connection.recv()
        except EOFError:
            answer = {"error": "the process died"}
        if "seconds" not in answer:
            self.figures = answer
        elif self.first is None:
            self.first = answer["all"]
        else:
            for name, times in self.times.items():
                times.append(answer[name])

    def go_on(self) -> None:
        """Have one more unit of work done, if any is left."""
        if not self.figures:
            self.connection.send(True)
            self._receive()

    def finish(self) -> dict[str, Any]:
        """End the process; returns its figures."""
        self.process.join()
        figures = {name: value for name, value in self.figures.items() if name != "end"}
        if "error" in figures:
            return figures
        measured = {}
        for name, times in self.times.items():
            measured |= {name: statistics.median(times), f"{name}_min": min(times), f"{name}_max": max(times)}
        return {**measured, "first_seconds": self.first, **figures}


def compare(job: str, names: list[str], runs: int, epochs: int, repetitions: int) -> dict[str, Any]:
    """Time contenders against each other, interleaved so that a drift of the machine affects all alike."""
    processes = {}
    for name in names:
        print(f"{job}: setting up {name}", file=sys.stderr)
        processes[name] = Process(name, job, runs, epochs, repetitions)
    while not all(process.figures for process in processes.values()):
        for process in processes.values():
            process.go_on()
    return {
        name: {**process.finish(), "lines": lines_of_code(name, job), **CONTENDERS[name]._asdict()}
        for name, process in processes.items()
    }


def print_table(job: str, result: dict[str, Any], console: Console) -> None:
    """Print the figures of one job."""
    table = Table(title=f"{job}: {result['runs']} runs; seconds per epoch of all runs", title_justify="left")
    columns = ("", "median", "min to max", "ours is faster by", "CPU seconds", "ours takes less by")
    columns += ("first call", "peak memory", "lines")
    for column in (*columns, "resume", "replay", "best parameters", "table"):
        table.add_column(column, justify="left" if not column else "right")
    ours = result["contenders"].get("ours", {})
    for figures in result["contenders"].values():
        has = [figures[name] for name in ("resume", "replay", "best", "table")]
        if "error" in figures:
            table.add_row(figures["label"], "cannot", *[""] * (len(columns) - 2), *has)
            console.print(f"{figures['label']}: {figures['error']}")
            continue
        table.add_row(
            figures["label"],
            f"{figures['seconds']:.3g}",
            f"{figures['seconds_min']:.3g} to {figures['seconds_max']:.3g}",
            f"{figures['seconds'] / ours['seconds']:.1f}x" if "seconds" in ours else "",
            f"{figures['cpu_seconds']:.3g}",
            f"{figures['cpu_seconds'] / ours['cpu_seconds']:.1f}x" if "seconds" in ours else "",
            f"{figures['first_seconds']:.1f} s",
            f"{figures['peak_mib']:.0f} MiB",
            str(figures["lines"]),
            *has,
        )
    console.print(table)


def main(argv: list[str]) -> None:
    """The program."""
    values = flags.FlagValues()
    flags.DEFINE_list("only", list(CONTENDERS), "", flag_values=values)
    flags.DEFINE_enum("job", None, list(JOBS), "", flag_values=values)
    flags.DEFINE_integer("runs", None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("epochs", None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("repetitions", 5, "", lower_bound=1, flag_values=values)
    command_line.define_path("out", "benchmarks/results", "", values)
    command_line.parse_flags(argv, values)
    if unknown := set(values.only) - set(CONTENDERS):
        raise UserError(f"--only has {min(unknown)!r}; it must be some of {', '.join(CONTENDERS)}")
    out = Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": hardware(), "jobs": {}}
    for job in [values.job] if values.job else JOBS:
        runs, epochs = values.runs or JOBS[job][0], values.epochs or JOBS[job][1]
        contenders = compare(job, values.only, runs, epochs, values.repetitions)
        results["jobs"][job] = {"runs": runs, "epochs": epochs, "contenders": contenders}
        print_table(job, results["jobs"][job], Console(width=200))
        (out / "frameworks.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    entry.run(main, __doc__)
