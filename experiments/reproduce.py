"""Run the paper's experiments, in sessions of any length, and write the page that compares its numbers with ours.

    python -m experiments.reproduce
    python -m experiments.reproduce --what=table1,gates,very_deep
    timeout --foreground -s INT 30m python -m experiments.reproduce --what=figure1 --depths=10,20

Without --what, nothing is trained. The program then only rewrites docs/reproduction.md, its figure and the README's
first screen, from results/ and, for the README's line about speed, from benchmarks/results.

--what=NAME,...        experiments to run or resume, in this order: figure1 (Section 3.1), table1, table2, table3, gates
                       (Figures 2 to 4, from the searches at depth 50), very_deep (more than 1000 layers); and, to
                       explain differences from the paper, gates_tanh and slow_decay
--depths=N,...         depths of figure1, in this order; 10,20,50,100 by default
--scale=SCALE          "paper": the paper's numbers of runs and epochs, which need an accelerator; "small": as many as
                       two CPU cores train in hours; by default the scale that suits the devices of this machine
--workdirs=DIR         the searches and trainings work in DIR/SCALE/NAME; runs/reproduction by default

Ctrl-C, or `timeout` as above after half an hour, stops the program after the current epoch. The same command resumes.

Results go to results/NAME: config.json, runs.csv, curves.csv, summary.json, provenance.json, figures, and the output of
experiments.analyze.
"""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

from absl import flags

from experiments.app import command_line, entry, errors
from experiments.app.errors import UserError
from experiments.app.output import say
from experiments.reproduction import collecting, page
from experiments.reproduction.experiments import PARTS, choose, commands

ROOT = Path(__file__).parents[1]
# The exit statuses of a program that was asked to stop. Negative: the signal killed it before it could stop in order.
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM}


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_list("what", [], "experiments of the paper", flag_values=values)
    flags.DEFINE_list("depths", ["10", "20", "50", "100"], "depths of figure1", flag_values=values)
    flags.DEFINE_enum("scale", None, ["paper", "small"], "number of runs and epochs", flag_values=values)
    command_line.define_path("workdirs", "runs/reproduction", "where the work is done", values)
    command_line.parse_flags(argv, values)
    if values["depths"].present and "figure1" not in values.what:
        raise UserError(f"--depths is {','.join(values.depths)!r}, which needs --what=figure1")
    if values["what"].present and not values.what:
        raise UserError(f"--what is empty; it must be of {', '.join(PARTS)}")
    chosen = choose(values.what, values.depths)
    if not (ROOT / "README.md").exists():
        raise UserError(
            "experiments.reproduce needs a clone of the repository, whose results/, docs/ and README.md it writes; "
            f"{str(ROOT)!r} is not one"
        )
    scale = values.scale or (default_scale() if chosen else "")
    status, kept = 0, False
    for experiment in chosen:
        if scale == "small" and experiment.small is None:
            errors.warn(f"{experiment.name} is too large for a CPU and is skipped; --scale=paper runs it anyway")
            continue
        directory = Path(values.workdirs) / scale / experiment.name
        for command in commands(experiment, scale, directory):
            status = run_program(*command)
            if status:
                break
        if status in {0, *STOPPED} and (directory / "runs.csv").exists():
            kept |= collecting.keep(directory, ROOT / "results" / experiment.name)
        if status:
            break
    for path in page.write(ROOT) if kept or not chosen else ():
        say(f"written: {path}")
    if status in STOPPED:
        raise errors.Interrupted(abs(status) % 128, "in order; the same command resumes from there")
    if status:
        if status != 2:  # the program has already reported a user's mistake
            errors.warn(f"experiments.{command[0]} has failed with status {status}")
        sys.exit(status if status > 0 else 1)


def default_scale() -> str:
    """The scale that suits this machine's devices; a separate process asks, since JAX reserves a GPU's memory."""
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    answer = subprocess.run(ask, capture_output=True, text=True)
    if answer.returncode:
        raise UserError(f"JAX finds no device: {(answer.stderr.strip() or 'it says nothing').splitlines()[-1]}")
    return "small" if answer.stdout.strip() == "cpu" else "paper"


def run_program(program: str, *arguments: str) -> int:
    """Run one of the programs until it ends, and pass signals on to it. Returns its exit status."""
    say(shlex.join(["python", "-m", f"experiments.{program}", *arguments]))
    argv = [sys.executable, "-m", f"experiments.{program}", *arguments]
    with subprocess.Popen(argv, start_new_session=True) as process:  # so Ctrl-C reaches it only through us
        before = {
            number: signal.signal(number, lambda number, _: process.send_signal(number))
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


if __name__ == "__main__":
    entry.run(main, __doc__)
