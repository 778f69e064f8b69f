"""The paper's experiments, in pieces of any length, and the page that has its numbers beside ours.

    python -m experiments.reproduce
    python -m experiments.reproduce --what=figure1 --depths=10,20 --budget_minutes=30
    python -m experiments.reproduce --what=table1,gates,very_deep

Without --what nothing is trained: docs/reproduction.md, its figure and the README's first screen are written again,
from results/ and, for the README's line about speed, benchmarks/results.

--what=NAME,...        what to run or to go on with, in this order: figure1 (Section 3.1), table1, table2, table3, gates
                       (Figures 2 to 4, of the searches at depth 50), very_deep (more than 1000 layers); and where
                       ours differs from the paper, gates_tanh and slow_decay
--depths=N,...         of figure1, in this order; 10,20,50,100 by default
--scale=SCALE          "paper": runs and epochs as in the paper, which wants an accelerator; "small": as many as two CPU
                       cores manage in hours; by default what the devices here are for
--budget_minutes=M     stop after so long, after the epoch; the same command goes on
--workdirs=DIR         where searches and trainings work, in DIR/SCALE/NAME; runs/reproduction by default

What comes out goes to results/NAME: config.json, runs.csv, curves.csv (thinned if large), summary.json,
provenance.json, figures, and what experiments.analyze found.
"""

import csv
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from experiments import claims, cli, reproduction_page, results, workdir
from experiments.cli import UserError
from experiments.results import NetworkResult
from highway_jax import population

ROOT = Path(__file__).parents[1]
# How a program of ours ends that was asked to stop; negative: before it could do so in order.
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM}
LARGE = 20_000  # rows of curves.csv; more are thinned
WHOLE_CURVES = 10  # of the best runs of each network, and of those that ever led, every epoch is kept
THIN = 20  # of the other runs every so many epochs, and the first, the best, the last and the first not finite
# Of a depth's search on a CPU: the worse half of the runs stops every five epochs, until ten are left.
HALVED = ("search.halving.every=5", "search.halving.at_least=10")
SMALL_SEARCH = {
    10: ("epochs=100", *HALVED),
    20: ("epochs=100", *HALVED),
    50: ("epochs=60", *HALVED),
    100: ("epochs=60", *HALVED),
}
SMALL_MNIST = ("epochs=12", "learning_rate=0.05", "boundaries=(8, 11)")

# The network that the paper looks into is a tanh network whose gates began at -2; ours need not be.
TANH = ("networks=highway", "search.activation=tanh", "search.transform_bias=(-2.0, -2.0)")
SMALL_TANH = ("num_runs=8", "epochs=40", "search.learning_rate=(0.03, 0.3)", "search.momentum=(0.8, 0.9)")
# Networks whose learning rates stay high for longer: do they get lower in the end? Each kind at rates that suit it.
SLOW = {
    "plain": ("networks=plain", "search.decay=(0.98, 0.995)", "search.learning_rate=(0.005, 0.05)"),
    "highway": ("networks=highway", "search.decay=(0.98, 0.995)", "search.learning_rate=(0.03, 0.3)"),
}
SMALL_SLOW = ("num_runs=8", "epochs=200")


@dataclass(frozen=True)
class Experiment:
    """A directory of results/ and what fills it.

    Attributes:
      name: the directory's.
      what: the part of the paper that it belongs to.
      config: of `experiments.search` or `experiments.train`.
      paper: changes to the config for what the paper did.
      small: further changes for what a CPU can do in an hour or so; None: nothing that is worth it.
      title: what Figures 2 to 4 call it, where they are drawn.
    """

    name: str
    what: str
    config: str
    paper: tuple[str, ...] = ()
    small: tuple[str, ...] | None = None
    title: str = ""


EXPERIMENTS = (
    *(Experiment(f"figure1_depth{d}", "figure1", f"mnist_depth{d}", small=small) for d, small in SMALL_SEARCH.items()),
    *(Experiment(f"mnist_conv{w}", "table1", f"mnist_conv{w}", ("num_runs=5",), SMALL_MNIST) for w in (16, 32)),
    *(Experiment(f"cifar10_highway_{x}", "table2", f"cifar10_highway_{x}", ("num_runs=5",)) for x in "bac"),
    *(Experiment(f"{name}_gap", "table3", f"{name}_gap", ("num_runs=5",)) for name in ("cifar10", "cifar100")),
    Experiment("figure1_depth50", "gates", "mnist_depth50", small=SMALL_SEARCH[50], title="MNIST"),
    Experiment("cifar100_depth50", "gates", "cifar100_depth50", ("networks=highway",), title="CIFAR-100"),
    Experiment("gates_tanh", "gates_tanh", "mnist_depth50", TANH, SMALL_TANH, title="MNIST, tanh, gates from -2"),
    Experiment(
        "very_deep",
        "very_deep",
        "mnist_depth1000",
        ("depth=1100", "networks=highway"),
        ("num_runs=4", "epochs=5", "search.learning_rate=(0.01, 0.3)"),
    ),
    *(
        Experiment(f"slow_decay_{network}_depth{d}", "slow_decay", f"mnist_depth{d}", changes, SMALL_SLOW)
        for d in (10, 20)
        for network, changes in SLOW.items()
    ),
)
PARTS = tuple(dict.fromkeys(experiment.what for experiment in EXPERIMENTS))


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_list("what", [], "parts of the paper", flag_values=values)
    flags.DEFINE_list("depths", ["10", "20", "50", "100"], "of figure1", flag_values=values)
    flags.DEFINE_enum("scale", None, ["paper", "small"], "how much of it", flag_values=values)
    flags.DEFINE_float("budget_minutes", None, "when to stop", lower_bound=0.0, flag_values=values)
    cli.define_path("workdirs", "runs/reproduction", "where the work is done", values)
    cli.parse_flags(argv, values)
    if values["depths"].present and "figure1" not in values.what:
        raise UserError(f"--depths is {','.join(values.depths)!r}, which is for --what=figure1")
    if values["what"].present and not values.what:
        raise UserError(f"--what is empty; it must be of {', '.join(PARTS)}")
    if values.budget_minutes is not None and not math.isfinite(values.budget_minutes):
        raise UserError(f"--budget_minutes is {values.budget_minutes}; it must be a number of at least 0")
    chosen = choose(values.what, values.depths)
    scale = values.scale or (default_scale() if chosen else "")
    end = math.inf if values.budget_minutes is None else time.monotonic() + 60 * values.budget_minutes
    status, kept = 0, False
    for experiment in chosen:
        if scale == "small" and experiment.small is None:
            cli.warn(f"{experiment.name} is nothing for a CPU; --scale=paper runs it all the same")
            continue
        directory = Path(values.workdirs) / scale / experiment.name
        for command in commands(experiment, scale, directory):
            status = status or run_program(command, end)
        if status in {0, *STOPPED} and (directory / "runs.csv").exists():
            kept |= keep(directory, ROOT / "results" / experiment.name)
        if status:
            break
    for path in reproduction_page.write(ROOT) if kept or not chosen else ():
        cli.say(f"written: {path}")
    if status in STOPPED and time.monotonic() >= end:
        cli.say(f"stopped after {values.budget_minutes:g} minutes; the same command goes on from there")
    elif status in STOPPED:
        raise cli.Interrupted(abs(status) % 128, "in order; the same command goes on from there")
    elif status:
        if status != 2:  # a user's mistake has been told
            cli.warn(f"experiments.{command[0]} has failed with status {status}")
        sys.exit(status if status > 0 else 1)


def choose(parts: list[str], depths: list[str]) -> list[Experiment]:
    """The experiments that are meant, in the order in which they are named.

    Raises:
      UserError: for a name or a depth that there is none of.
    """
    figure1 = {e.name.removeprefix("figure1_depth"): e for e in EXPERIMENTS if e.what == "figure1"}
    for depth in depths or [""]:
        if depth not in figure1:
            raise UserError(f"--depths has {depth!r}; it must be of {', '.join(figure1)}")
    chosen: list[Experiment] = []
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--what has {part!r}; it must be of {', '.join(PARTS)}")
        if part == "figure1":
            chosen += [figure1[depth] for depth in depths]
        else:
            chosen += [experiment for experiment in EXPERIMENTS if experiment.what == part]
    return chosen


def default_scale() -> str:
    """What the devices here are for; asked in a process of its own, since to ask takes an accelerator's memory."""
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    answer = subprocess.run(ask, capture_output=True, text=True)
    if answer.returncode:
        raise UserError(f"JAX finds no device: {(answer.stderr.strip() or 'it says nothing').splitlines()[-1]}")
    return "small" if answer.stdout.strip() == "cpu" else "paper"


def commands(experiment: Experiment, scale: str, directory: Path) -> list[list[str]]:
    """What to run for an experiment, one command after the other."""
    changes = experiment.paper + (experiment.small or ()) * (scale == "small")
    program = "train" if experiment.what.startswith("table") else "search"
    train = [program, f"--config={experiment.config}", *(f"--config.{change}" for change in changes)]
    analyze = ["analyze", f"--title={experiment.title}"]
    return [[*command, f"--workdir={directory}"] for command in [train, analyze][: 1 + bool(experiment.title)]]


def run_program(command: list[str], end: float) -> int:
    """Run a program of ours until it ends, or until a time, after which it stops in order; signals are passed on to it.

    Returns:
      Its exit status.
    """
    if time.monotonic() >= end:
        return 128 + signal.SIGINT
    program, *arguments = command
    cli.say(shlex.join(["python", "-m", f"experiments.{program}", *arguments]))
    argv = [sys.executable, "-m", f"experiments.{program}", *arguments]
    with subprocess.Popen(argv, start_new_session=True) as process:  # so a terminal's Ctrl-C comes from here alone
        before = {
            number: signal.signal(number, lambda number, _: process.send_signal(number))
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            return process.wait(None if end == math.inf else end - time.monotonic())
        except subprocess.TimeoutExpired:
            process.terminate()  # as Ctrl-C, but also where that is ignored
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def keep(directory: Path, destination: Path) -> bool:
    """Put a workdir's results in the place of earlier ones, unless those are of more work; returns whether it did."""
    before, now = map(_progress, (destination, directory))
    if now < before:
        cli.say(f"{destination} stays as it is: it is of {before[1]:,} runs' epochs, {directory} of {now[1]:,}")
        return False
    fresh = destination.with_name(f".{destination.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    collect(directory, fresh)
    shutil.rmtree(destination, ignore_errors=True)
    fresh.rename(destination)
    return True


def _progress(directory: Path) -> tuple[bool, int, bool]:
    """Whether results are finished, how many epochs their runs have had, and whether they were looked into."""
    if not (directory / "runs.csv").exists():
        return False, 0, False
    found = results.load(directory)
    epochs = sum(int(runs.epochs.sum()) for runs in found.networks.values())
    return found.summary is not None, epochs, (directory / "analysis.json").exists()


def collect(directory: Path, destination: Path) -> None:
    """Copy a workdir's results, finished or not, in a form fit for a repository."""
    destination.mkdir(parents=True)
    for name in workdir.RESULTS:
        if name != "curves.csv" and (directory / name).exists():
            shutil.copyfile(directory / name, destination / name)
    if (directory / "analysis.json").exists():
        found = results.read_json(directory / "analysis.json")
        del found["gates"]["class_mean"]  # the routing and the mean
        workdir.write_text(destination / "analysis.json", json.dumps(_rounded(found)) + "\n")
    for path in directory.glob("*.png"):
        if not path.name.startswith("report_"):
            Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(destination / path.name)
    with (directory / "curves.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    if len(rows) > LARGE:
        rows = thinned(header, rows, results.load(directory).networks)
    with (destination / "curves.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def thinned(header: list[str], rows: list[list[str]], networks: dict[str, NetworkResult]) -> list[list[str]]:
    """The rows of a `curves.csv` from which its figures, its `runs.csv` and every number of the page follow."""
    keep = {network: needed(runs) for network, runs in networks.items()}
    network, run, epoch = map(header.index, ("network", "run", "epoch"))
    return [
        row
        for row in rows
        if row[network] in keep
        and keep[row[network]][int(row[run]) - networks[row[network]].run[0], int(row[epoch]) - 1]
    ]


def needed(runs: NetworkResult) -> np.ndarray:
    """(runs, epochs) bool: which losses are kept.

    `claims.Best` may compare depths after fewer epochs than a search has had; so the runs that led then are kept whole.
    """
    curves, each = runs.curves, np.arange(len(runs.run))
    ranking = population.rank(curves)
    keep = np.zeros(curves.shape, bool)
    keep[:, 0] = keep[:, THIN - 1 :: THIN] = True
    for epoch in ranking.best_epoch, ranking.epochs:
        keep[each, np.maximum(epoch, 1) - 1] = True
    keep[each, np.isinf(curves).argmax(axis=1)] = True
    keep[runs.rank <= WHOLE_CURVES] = True
    keep[claims.leaders(curves)] = True
    return keep


def _rounded(value: Any) -> Any:
    """JSON with four significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    cli.run(main, __doc__)
