"""The files of a search's workdir; the README's table says what each holds."""

import csv
import json
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.cli import UserError, leaves
from highway_jax import parallel, search, training
from highway_jax.activations import ACTIVATIONS

RUN_COLUMNS = (
    "network",
    "run",
    "rank",
    "learning_rate",
    "momentum",
    "decay",
    "activation",
    "transform_bias",
    "best_loss",
    "best_epoch",
    "final_loss",
    "diverged",
    "test_accuracy",
)


@dataclass(frozen=True)
class Outcome:
    """What the search over one kind of network found: host arrays with a leading axis of runs."""

    hyperparameters: training.Hyperparameters
    curves: np.ndarray
    test_accuracy: np.ndarray
    best_params: Any
    seconds: float


# What a result does not depend on.
ANYWHERE = ("data_dir", "runs_per_batch")


def finished(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """The `summary.json` of a workdir that holds this config's finished search, or None.

    Raises:
      UserError: if the workdir is a file, is damaged, or holds a search with another config.
    """
    try:
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir is {str(workdir)!r}, which is a file; it must be a directory or not exist yet")
        if not (workdir / "config.json").exists():
            return None
        earlier = ConfigDict(_read_object(workdir / "config.json"))
        if not (workdir / "runs.csv").exists():
            return None  # interrupted before there was a result
        _check_same(earlier, config, workdir)
        if not (workdir / "summary.json").exists():
            return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--workdir is {str(workdir)!r}, which cannot be used: {reason}") from error
    summary = _read_object(workdir / "summary.json")
    entry = {"best_loss", "top10_mean_loss", "median_loss", "diverged", "num_runs", "best_run_test_accuracy"}
    complete = all(isinstance(values, dict) and entry <= set(values) for values in summary.values())
    if set(summary) != set(config.networks) or not complete:
        raise UserError(f"{workdir / 'summary.json'} is damaged; remove the workdir or choose another --workdir")
    return summary


def prepare(workdir: Path, config: ConfigDict) -> None:
    """Make the workdir and write `config.json`."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / "config.json", config.to_json(indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--workdir is {str(workdir)!r}, which cannot be written: {error.strerror}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged; remove the workdir or choose another --workdir")
    return value


def _check_same(there: ConfigDict, now: ConfigDict, workdir: Path) -> None:
    now = ConfigDict(json.loads(now.to_json()))  # as it would be read back
    before, after = ({key: value for key, value in leaves(c).items() if key not in ANYWHERE} for c in (there, now))
    changed = [
        f"{key} ({before.get(key)} there, {after.get(key)} now)"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if changed:
        raise UserError(
            f"--workdir is {str(workdir)!r}, which holds a search with another config: {', '.join(changed)}; "
            "choose another --workdir"
        )


def write_text(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table at once or not at all; None is an empty field."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON at once or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def provenance() -> dict[str, Any]:
    """What a result came from: commit, versions, hardware."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    devices = jax.devices()
    return {
        "commit": commit,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")},
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cpu_cores": parallel.cpu_cores(),
    }


def write_tables(directory: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write `runs.csv` and `curves.csv`; float32 values are written so that they can be read back exactly."""
    runs, curves = [], []
    for network, outcome in outcomes.items():
        ranking = search.rank(outcome.curves)
        rank_of = np.argsort(ranking.order) + 1
        hp = {f.name: getattr(outcome.hyperparameters, f.name) for f in fields(outcome.hyperparameters)}
        for run, losses in enumerate(outcome.curves):
            row = {
                "network": network,
                "run": run,
                "rank": rank_of[run],
                **{name: value[run] for name, value in hp.items()},
                "activation": ACTIVATIONS[hp["activation"][run]],
                "best_loss": ranking.best_loss[run],
                "best_epoch": ranking.best_epoch[run],
                "final_loss": ranking.final_loss[run],
                "diverged": bool(ranking.diverged[run]),
                "test_accuracy": outcome.test_accuracy[run],
            }
            if network == "plain":
                row["transform_bias"] = None
            runs.append([row[column] for column in RUN_COLUMNS])
            curves += [(network, run, epoch, loss) for epoch, loss in enumerate(losses, start=1)]
    write_csv(directory / "runs.csv", RUN_COLUMNS, runs)
    write_csv(directory / "curves.csv", ("network", "run", "epoch", "train_loss"), curves)


def summarize(outcome: Outcome) -> dict[str, Any]:
    """One network's entry of `summary.json`; a number that is not finite becomes null."""
    ranking = search.rank(outcome.curves)
    best = int(ranking.order[0])
    summary = {
        "best_loss": float(ranking.best_loss[best]),
        "best_run": best,
        "top10_mean_loss": ranking.mean_of_best(10),
        "median_loss": ranking.median(),
        "diverged": int(ranking.diverged.sum()),
        "num_runs": len(outcome.curves),
        "best_run_test_accuracy": float(outcome.test_accuracy[best]),
        "seconds": round(outcome.seconds, 1),
    }
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
