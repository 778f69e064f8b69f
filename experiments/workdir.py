"""The files of a workdir; the README's table says what each holds."""

import csv
import dataclasses
import importlib.util
import json
import math
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import filelock
import jax
import numpy as np
from flax import struct
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import cluster
from experiments.cli import UserError, leaves
from highway_jax import checkpoint, parallel, search, training
from highway_jax.activations import ACTIVATIONS
from highway_jax.blocks import BLOCKS

FORMAT = 3  # of a workdir; 2 knew no runs that stop early, 1 no checkpoints and no checksums
CHECKPOINTS = "checkpoints"  # the folder of each network's checkpoints, until the work is finished
RESULTS = ("config.json", "runs.csv", "curves.csv", "summary.json", "provenance.json")

THEN = ", then "  # between what computed the layers before and after a stop, where those differ

# What a result does not depend on.
ANYWHERE = (
    "data_dir",
    "mesh",
    "runs_per_batch",
    "implementation",
    "resume",
    "checkpoint_every",
    "log_every",
    "tensorboard",
)


@struct.dataclass
class Outcome:
    """What training one kind of network's population gave: host arrays with a leading axis of runs.

    Attributes:
      hyperparameters: every run's.
      train_loss: (runs, epochs) mean training losses, as for `highway_jax.search.rank`.
      accuracy: (runs, epochs) accuracies by the split's column, NaN where not evaluated.
      best_params: the best run's parameters, after its best epoch.
      final_params: every run's parameters after its last epoch, with a leading axis of runs, or empty.
      first_run: the first run's number.
      seconds: of training.
    """

    hyperparameters: training.Hyperparameters
    train_loss: np.ndarray
    accuracy: dict[str, np.ndarray]
    best_params: Any
    final_params: Any
    first_run: int = struct.field(pytree_node=False)
    seconds: float = struct.field(pytree_node=False)

    def so_far(self) -> Self:
        """Without the runs and the epochs that are still to come."""
        epochs = search.rank(self.train_loss).epochs
        runs, longest = np.count_nonzero(epochs), epochs.max()
        return dataclasses.replace(
            self,
            hyperparameters=jax.tree.map(lambda leaf: leaf[:runs], self.hyperparameters),
            train_loss=self.train_loss[:runs, :longest],
            accuracy={name: table[:runs, :longest] for name, table in self.accuracy.items()},
            final_params=jax.tree.map(lambda leaf: leaf[:runs], self.final_params),
        )

    def last_accuracy(self, name: str) -> np.ndarray:
        """(runs,) a split's accuracies after every run's last epoch."""
        epochs = search.rank(self.train_loss).epochs
        return self.accuracy[name][np.arange(len(epochs)), epochs - 1]


def finished(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """The `summary.json` of a workdir that holds this config's finished work, or None.

    Raises:
      UserError: if the workdir is a file, is damaged, holds work of another config or of an older version,
        or holds any at all where `config.resume` is "never".
    """
    return _read_object(workdir / "summary.json") if cluster.at_first(lambda: _is_finished(workdir, config)) else None


def _is_finished(workdir: Path, config: ConfigDict) -> bool:
    try:
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir is {str(workdir)!r}, which is a file; it must be a directory or not exist yet")
        work = any((workdir / name).exists() for name in (CHECKPOINTS, "runs.csv", checkpoint.SUMS))
        if not (workdir / "config.json").exists():
            if work:
                raise damaged(workdir / "config.json")
            return False
        if config.resume == "never":
            raise UserError(f"config.resume is 'never', but {workdir} holds earlier work; choose another --workdir")
        earlier = ConfigDict(_read_object(workdir / "config.json"))
        if not work:
            return False  # stopped before there was anything to keep
        read_provenance(workdir)
        _check_same(earlier, config, workdir)
        if not (workdir / checkpoint.SUMS).exists():
            return False
        if name := checkpoint.damaged_file(workdir, [workdir / name for name in RESULTS]):
            raise damaged(workdir / name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--workdir is {str(workdir)!r}, which cannot be used: {reason}") from error
    return True


def read_provenance(workdir: Path) -> dict[str, Any]:
    """A workdir's `provenance.json`; refuses a workdir that another version wrote in another form."""
    path = workdir / "provenance.json"
    found = _read_object(path) if path.exists() else {}
    there = found.get("format", 1)
    if there != FORMAT:
        raise UserError(
            f"workdir {str(workdir)!r} was written by another version, in format {there!r}; "
            f"this version reads format {FORMAT}"
        )
    return found


def earlier_implementations(workdir: Path) -> dict[str, str] | None:
    """What computed each network's layers in a workdir's unfinished work, in the end; None if there is no such work."""
    recorded = _recorded_implementations(workdir)
    return None if recorded is None else {network: text.split(THEN)[-1] for network, text in recorded.items()}


def _recorded_implementations(workdir: Path) -> dict[str, str] | None:
    return read_provenance(workdir).get("implementations", {}) if (workdir / CHECKPOINTS).exists() else None


def _after(before: str | None, now: str) -> str:
    """Such as "xla, then fused"."""
    if before is None:
        return now
    return before if before.split(THEN)[-1] == now else before + THEN + now


@contextmanager
def opened(workdir: Path, config: ConfigDict, implementations: Mapping[str, str]) -> Iterator[dict[str, Any] | None]:
    """Make the workdir, keep other programs out of it, and write what is known at the start.

    Yields what `finished` says of it then.

    Raises:
      UserError: if it cannot be written, or another program is at work in it.
    """
    lock = filelock.FileLock(workdir / ".lock", timeout=0)

    def begin() -> bool:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            if _is_finished(workdir, config):
                return True
            # In this order: a workdir with a config also says its format.
            before = _recorded_implementations(workdir) or {}
            so_far = {network: _after(before.get(network), now) for network, now in implementations.items()}
            write_json(workdir / "provenance.json", {**provenance(), "implementations": so_far})
            write_text(workdir / "config.json", config.to_json(indent=2) + "\n")
        except filelock.Timeout as error:
            raise UserError(
                f"--workdir is {str(workdir)!r}, in which another process is at work; choose another --workdir"
            ) from error
        except OSError as error:
            raise UserError(f"--workdir is {str(workdir)!r}, which cannot be written: {error.strerror}") from error
        return False

    try:
        yield _read_object(workdir / "summary.json") if cluster.at_first(begin) else None
    finally:
        lock.release()


def finish(
    workdir: Path, outcomes: Mapping[str, Outcome], figures: Mapping[str, Figure], data_md5: Mapping[str, str]
) -> dict[str, Any]:
    """Write what there is to say at the end, mark the workdir as finished, drop the checkpoints.

    Returns:
      The summary.
    """
    for name, figure in figures.items():
        figure.savefig(workdir / name, dpi=150)
    seconds = {network: round(o.seconds, 1) for network, o in outcomes.items()}
    kept = {"implementations": read_provenance(workdir)["implementations"]}
    write_json(workdir / "provenance.json", {**provenance(), **kept, "seconds": seconds, "data_md5": dict(data_md5)})
    summary = {network: summarize(o) for network, o in outcomes.items()}
    write_json(workdir / "summary.json", summary)
    params = (file for folder in ("best", "params") for file in checkpoint.files_in(workdir / folder))
    checkpoint.write_sums(workdir, [*(workdir / name for name in RESULTS), *params])
    shutil.rmtree(workdir / CHECKPOINTS)
    return summary


def damaged(path: Path) -> UserError:
    """What is said of a file that is not as it was written."""
    return UserError(f"{path} is damaged; remove the workdir or choose another --workdir")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise damaged(path)
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
            f"--workdir is {str(workdir)!r}, which holds work of another config: {', '.join(changed)}; "
            "choose another --workdir"
        )


def write_text(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON at once or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def provenance() -> dict[str, Any]:
    """What a result came from: commit, versions, hardware."""
    devices = jax.devices()
    return {
        "format": FORMAT,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")},
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "cpu_cores": parallel.cpu_cores(),
    }


def _commit() -> str | None:
    """The code's commit, marked if the code has changed since; None outside a clone."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", "highway_jax", "experiments")
        return git("describe", "--always").strip() + "-dirty" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def write_tables(directory: Path, outcomes: Mapping[str, Outcome], accuracy_curves: bool) -> None:
    """Write `runs.csv` and `curves.csv`, with every epoch's accuracies if wanted; as Parquet too where pyarrow is.

    float32 values are written so that they can be read back exactly.
    """
    runs: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for network, outcome in outcomes.items():
        ranking = search.rank(outcome.train_loss)
        rank_of = np.argsort(ranking.order) + 1
        last = {name: outcome.last_accuracy(name) for name in outcome.accuracy}
        hp = {f.name: getattr(outcome.hyperparameters, f.name) for f in dataclasses.fields(outcome.hyperparameters)}
        for index, losses in enumerate(outcome.train_loss):
            run = outcome.first_run + index
            runs.append(
                {
                    "network": network,
                    "run": run,
                    "rank": rank_of[index],
                    **{name: value[index] for name, value in hp.items()},
                    "activation": ACTIVATIONS[hp["activation"][index]],
                    "transform_bias": hp["transform_bias"][index] if BLOCKS[network].gated else None,
                    "best_loss": ranking.best_loss[index],
                    "best_epoch": ranking.best_epoch[index],
                    "final_loss": ranking.final_loss[index],
                    "diverged": bool(ranking.diverged[index]),
                    "epochs": ranking.epochs[index],
                    **{name: accuracy[index] for name, accuracy in last.items()},
                }
            )
            curved = outcome.accuracy if accuracy_curves else {}
            for epoch, loss in enumerate(losses[: ranking.epochs[index]]):
                accuracy = {name: table[index, epoch] for name, table in curved.items()}
                curves.append({"network": network, "run": run, "epoch": epoch + 1, "train_loss": loss, **accuracy})
    _write_table(directory / "runs", runs)
    _write_table(directory / "curves", curves)


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    partial = path.with_suffix(".csv.partial")
    with partial.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
    partial.replace(path.with_suffix(".csv"))
    path.with_suffix(".parquet").unlink(missing_ok=True)
    if importlib.util.find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet

        partial = path.with_suffix(".parquet.partial")
        table = pyarrow.table({column: [row[column] for row in rows] for column in rows[0]})
        pyarrow.parquet.write_table(table, partial)
        partial.replace(path.with_suffix(".parquet"))


def write_params(directory: Path, network: str, outcome: Outcome) -> None:
    """Write the best run's parameters to `best/NETWORK`, and any final ones to `params/NETWORK/runN`."""
    checkpoint.save_params(directory / "best" / network, outcome.best_params)
    if outcome.final_params:
        for index in range(len(outcome.train_loss)):
            params = jax.tree.map(lambda leaf: leaf[index], outcome.final_params)  # noqa: B023
            checkpoint.save_params(directory / "params" / network / f"run{outcome.first_run + index}", params)


def summarize(outcome: Outcome) -> dict[str, Any]:
    """One network's entry of `summary.json`; a number that is not finite becomes null."""
    ranking = search.rank(outcome.train_loss)
    best = int(ranking.order[0])
    summary = {
        "best_loss": float(ranking.best_loss[best]),
        "best_run": outcome.first_run + best,
        "top10_mean_loss": ranking.mean_of_best(10),
        "median_loss": ranking.median(),
        "diverged": int(ranking.diverged.sum()),
        "num_runs": len(outcome.train_loss),
        "best_run_test_accuracy": float(outcome.last_accuracy("test_accuracy")[best]),
        "seconds": round(outcome.seconds, 1),
    }
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
