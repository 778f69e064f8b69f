"""Measure everything of interest on a machine with an accelerator in a short session, most important things first.

    python -m benchmarks.accelerator --minutes=8 --output=DIR --torch

--minutes=N        the length of the session; every step also has a limit of its own
--output=DIR       gets three files: summary.json, console.log, and results.tar.gz with everything else
--work=DIR         holds the files of the steps and the checkpoints of the search; runs/accelerator by default
--torch            also measure PyTorch
--only=STEP,...    only these steps

A quarter of the time is reserved for the search, which comes last. Every step runs in its own process and writes its
results row by row. Nothing is lost if a step fails, takes too long or is killed: the summary records it, and the next
step starts. Repeating the command replaces earlier measurements and resumes the search. On a CPU the sizes are tiny and
only show that everything works. No step needs a network. MNIST is read from $TFDS_DATA_DIR; without it, the search uses
the digits.

results.tar.gz contains population_DEVICE_depthN.json and population_DEVICE_depthN_runs1000.json. Copy them to
benchmarks/results, where `experiments.plan` reads them.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import population, steps
from benchmarks.steps import ROOT, Row, Settings
from benchmarks.work import Work
from experiments.app import command_line, entry
from experiments.app.errors import UserError

COMMAND = (sys.executable, "-m", "benchmarks.accelerator")
LEAST = 16.0  # seconds that must be left to start a step
GRACE = 8.0  # seconds between asking a step to stop and killing it
SEARCH = 0.25  # share of the time that is reserved for the search
PACKED = 10 * 2**20  # bytes; larger files are left out of the archive


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a session.

    Attributes:
      name: the name of the step and of its files.
      measure: the function that measures and yields rows.
      seconds: the time limit.
      xla_flags: flags added to XLA_FLAGS.
    """

    name: str
    measure: Callable[[Settings], Iterator[Row]]
    seconds: float
    xla_flags: str = ""

    @property
    def needs_torch(self) -> bool:
        return "torch" in self.name


TORCH = ("torch_loop", "torch_graph", "torch_bmm")

# Cheap and important steps come first.
STEPS = (
    Step("device", steps.device, 60),
    Step("correctness", steps.correctness, 75),
    Step("ours_depth100", partial(steps.ours, depth=100, sizes=steps.ALL), 75),
    Step("torch_depth100", partial(steps.torch, depth=100, names=(*TORCH, "torch_graph_tf32")), 45),
    Step("profile", steps.profile, 45),
    Step("roofline", steps.roofline, 45),
    Step("command_buffers_off", steps.command_buffers, 45, "--xla_gpu_enable_command_buffer="),
    Step("command_buffers_loops", steps.command_buffers, 45, "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"),
    Step(
        "command_buffers_all",
        steps.command_buffers,
        45,
        "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL --xla_gpu_graph_min_graph_size=1",
    ),
    Step("ours_depth10", partial(steps.ours, depth=10, sizes=steps.FEW), 60),
    Step("ours_depth50", partial(steps.ours, depth=50, sizes=steps.FEW), 60),
    Step("convnets", partial(steps.convnets, contender="ours"), 90),
    Step("convnets_torch", partial(steps.convnets, contender="torch"), 60),
    Step("torch_depth10", partial(steps.torch, depth=10, names=TORCH), 40),
    Step("torch_depth50", partial(steps.torch, depth=50, names=TORCH), 40),
    Step("torch_compile_depth10", partial(steps.torch, depth=10, names=("torch_compile",)), 60),
    Step("torch_compile_depth100", partial(steps.torch, depth=100, names=("torch_compile",)), 150),
    Step("search", steps.search, float("inf")),
)


class Console:
    """Prints lines, and appends them to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def print(self, line: str) -> None:
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def run(chosen: Sequence[Step], minutes: float, output: Path, work: Path) -> None:
    """Run steps one after another, and keep the files in `output` up to date."""
    end = time.monotonic() + 60 * minutes
    kept = 60 * minutes * SEARCH * (chosen[-1].name == "search")  # seconds that the other steps leave for the search
    console, summary = Console(output / "console.log"), output / "summary.json"
    records = _earlier(summary)
    console.print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {len(chosen)} steps in {minutes:g} minutes")
    for step in chosen:
        left = end - time.monotonic() - kept * (step.name != "search")
        if left < LEAST:
            records[step.name] = {"status": "no time left"}
        else:
            records[step.name] = {"status": "stopped"}  # unless the step ends
            try:
                records[step.name] = run_step(step, min(step.seconds, left - GRACE), work)
            finally:
                write(output, work, records)
        console.print(f"{step.name}: {described(records[step.name])}")
    write(output, work, records)


def _earlier(summary: Path) -> dict[str, Row]:
    """The records of the steps of an earlier call, if they can be read."""
    try:
        return dict(json.loads(summary.read_text())["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def run_step(step: Step, seconds: float, work: Path) -> Row:
    """Run a step in its own process; returns a record of how it ended."""
    log = work / f"{step.name}.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    if step.xla_flags:
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {step.xla_flags}".strip()
    command = [*COMMAND, f"--step={step.name}", f"--seconds={seconds:.1f}", f"--work={work}"]
    (work / f"{step.name}.json").unlink(missing_ok=True)
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            stop(process)
    record: Row = {"status": "done", "seconds": round(time.monotonic() - start, 1), "limit": round(seconds, 1)}
    rows = steps.read_rows(work, step.name)
    record |= {
        "rows": len(rows),
        "wrong": [row for row in rows if row.get("ok") is False],
        "errors": [row["error"] for row in rows if "error" in row],
    }
    if status != 0:
        record["status"] = "out of time" if status is None else "failed"
        record |= {"exit": status, "error": last_line(log), "log": log.name}
    return record


def stop(process: subprocess.Popen) -> None:
    """Stop a process and everything that it started: by SIGTERM, then by SIGKILL if that takes too long."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):  # no process is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(log: Path) -> str:
    """The last line of a process's log."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def described(record: Row) -> str:
    """A record as one line."""
    parts = [record["status"]]
    if "seconds" in record:
        parts.append(f"{record['rows']} rows in {record['seconds']:.0f} s")
    if record.get("wrong"):
        parts.append(f"{len(record['wrong'])} WRONG")
    if record.get("errors"):
        parts.append(f"{len(record['errors'])} with errors, the first: {record['errors'][0][:120]}")
    if record.get("error"):
        parts.append(record["error"])
    return "; ".join(parts)


def write(output: Path, work: Path, records: Mapping[str, Row]) -> None:
    """Write the summary with all rows, the tables, and the archive of everything."""
    rows = {step.name: steps.read_rows(work, step.name) for step in STEPS}
    for name, table in tables(rows).items():
        _replace(work / name, json.dumps(table, indent=2) + "\n")
    _replace(output / "summary.json", json.dumps({"steps": records, "rows": rows}, indent=1) + "\n")
    archive = output / ".results.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=4) as tar:
        for path in sorted({*work.glob("*.json"), *work.glob("*.log"), *(work / "searched").glob("*")}):
            if path.stat().st_size < PACKED:
                tar.add(path, f"results/{path.relative_to(work)}")
    archive.replace(output / "results.tar.gz")


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(text)
    scratch.replace(path)


def tables(rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """The measurements in the form of `benchmarks.population`, by file name; names of tiny sizes begin with "tiny_"."""
    rates = steps.read_rates(list(rows.get("device", ())))
    machine = next((row for row in rows.get("device", ()) if row["case"] == "machine"), None)
    device = next((row["device"] for row in rows.get("device", ()) if row["case"] == "device"), None)
    if not machine or not device or not {"gemm_flops", "copy_bytes"} <= rates.keys():
        return {}
    machine = {name: value for name, value in machine.items() if name not in ("case", "xla_flags")}
    card = device.split(" x ")[-1]
    timed = [
        row
        for name, found in rows.items()
        if name.startswith(("ours_", "torch_"))
        for row in found
        if row.get("device", card).split(" x ")[-1] == card  # an earlier session may have used another card
    ]
    works: dict[tuple[int, int], Work] = {}
    for row in timed:
        if row["case"] == "ours" and row["work"]["runs_per_batch"] == row["work"]["runs"]:
            work = Work(**row["work"])
            works[work.depth, work.runs] = work
    written = {}
    for (depth, runs), work in sorted(works.items()):
        here = [row for row in timed if (row["work"]["depth"], row["work"]["runs"]) == (depth, runs)]
        whole = [row for row in here if row["work"]["runs_per_batch"] == runs]
        report = population.report(work, machine, device, rates, {row["case"]: _figures(row) for row in whole})
        report["lockstep"] = [
            {"runs_per_batch": row["work"]["runs_per_batch"], "ms": row["ms"]}
            for row in here
            if row["case"] == "ours" and "ms" in row
        ]
        fewest = min(runs for known, runs in works if known == depth)
        name = f"{'tiny_' * device.endswith('cpu')}population_{population.label_of(device)}_depth{depth}"
        written[f"{name}{f'_runs{runs}' * (runs > fewest)}.json"] = report
    return written


def _figures(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in ("case", "work")}


def measure(step: Step, settings: Settings) -> None:
    """Run a step in this process; every row is written before the next one is measured."""
    rows: list[Row] = []
    for row in step.measure(settings):
        rows.append(row)
        print(json.dumps(row), flush=True)
        _replace(settings.work / f"{step.name}.json", json.dumps(rows, indent=1) + "\n")


def main(argv: list[str]) -> None:
    """The program."""
    values = flags.FlagValues()
    flags.DEFINE_float("minutes", 8.0, "", lower_bound=0.1, flag_values=values)
    flags.DEFINE_float("seconds", 60.0, "limit of --step", lower_bound=0, flag_values=values)
    flags.DEFINE_list("only", None, "", flag_values=values)
    flags.DEFINE_bool("torch", False, "", flag_values=values)
    flags.DEFINE_enum("step", None, [step.name for step in STEPS], "run this step here", flag_values=values)
    command_line.define_path("output", None, "", values)
    command_line.define_path("work", "runs/accelerator", "", values)
    command_line.parse_flags(argv, values)
    by_name = {step.name: step for step in STEPS}
    if values.step:
        measure(by_name[values.step], Settings(Path(values.work).absolute(), values.seconds))
        return
    if not values.output:
        raise UserError("--output is missing; it must be a directory")
    if not 0 < values.minutes < float("inf"):
        raise UserError(f"--minutes is {values.minutes}; it must be a number above 0")
    names = values.only or [step.name for step in STEPS if values.torch or not step.needs_torch]
    if unknown := set(names) - by_name.keys():
        raise UserError(f"--only has {min(unknown)!r}; it must be some of {', '.join(by_name)}")
    output = Path(values.output).absolute()
    work = Path(values.work).absolute()
    for flag, folder in ("output", output), ("work", work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--{flag} is {folder}, which cannot be created: {error}") from error
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    run([step for step in STEPS if step.name in names], values.minutes, output, work)


if __name__ == "__main__":
    entry.run(main, __doc__)
