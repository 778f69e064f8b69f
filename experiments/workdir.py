"""The files of a workdir; the README's table says what each holds."""

import csv
import dataclasses
import hashlib
import importlib.util
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import filelock
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import cli
from experiments.cli import UserError, leaves
from highway_jax import checkpoint, files, parallel, population
from highway_jax.files import PARTIAL, check_path, first_link, first_special, replacing, write_whole
from highway_jax.stack.kinds import KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 5  # of a workdir; 4 ranked diverged runs by what they had before, 3 tied no checkpoint to config and data
READABLE = (3, 4, FORMAT)  # formats of finished work that can be read
LOCK = ".lock"
CHECKPOINTS = "checkpoints"  # the folder of each network's checkpoints, until the work is finished
ACCURACIES = ("test_accuracy", "validation_accuracy")  # columns of tables
RESULTS = ("config.json", "runs.csv", "curves.csv", "summary.json", "provenance.json")
# What `summary.json` has of each network: integers, and numbers that are null where they are not finite.
INTEGERS = ("best_run", "diverged", "num_runs")
NUMBERS = ("best_loss", "top10_mean_loss", "median_loss", "best_run_test_accuracy", "seconds")

# Config keys that no number of a result depends on.
FREE = ("data_dir", "resume", "checkpoint_every", "log_every", "tensorboard")
# How devices share the work. `provenance.json` lists each change of it.
SHARING = ("runs_per_batch", "mesh")
ROUNDING = ("implementation", *SHARING)  # what a result depends on by rounding alone
CHANGEABLE = (*FREE, *SHARING)  # what may change when work goes on


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What training one kind of network has given so far, of the runs that have begun.

    Attributes:
      runs: (runs,) their numbers.
      hyperparameters: (runs,) values by name.
      train_loss: (runs, epochs) mean training losses, as for `population.rank`.
      accuracy: (runs, epochs) accuracies by the split's column, NaN where not evaluated.
      best_params: the best run's parameters, after its best epoch.
      params: every run's parameters after its last epoch, by number, or none.
      seconds: of training.
    """

    runs: np.ndarray
    hyperparameters: Mapping[str, np.ndarray]
    train_loss: np.ndarray
    accuracy: Mapping[str, np.ndarray]
    best_params: Any
    params: Mapping[int, Any]
    seconds: float

    @classmethod
    def of(cls, result: population.Result) -> Self:
        """Of a search that is finished or stopped."""
        epochs = result.ranking.epochs
        runs, longest = np.count_nonzero(epochs), epochs.max()
        curves = {name: curve[:runs, :longest] for name, curve in result.curves.items()}
        numbers = result.search.runs[:runs]
        return cls(
            runs=numbers,
            hyperparameters={name: values[:runs] for name, values in result.hyperparameters.items()},
            train_loss=curves[result.search.rank_by],
            accuracy={name: curve for name, curve in curves.items() if name in ACCURACIES},
            best_params=next(iter(result.outcome.best.values())).params,  # also where all runs have diverged
            params={run: result.run(run).params for run in numbers.tolist() if result.search.keep == "all"},
            seconds=result.seconds,
        )

    def last_accuracy(self, name: str) -> np.ndarray:
        """(runs,) a split's accuracies after every run's last epoch."""
        epochs = population.rank(self.train_loss).epochs
        return self.accuracy[name][np.arange(len(epochs)), epochs - 1]


def finished(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """The `summary.json` of a workdir that holds this config's finished work, or None.

    Raises:
      UserError: if the workdir is a file, is damaged, holds work of another config or of an older version,
        or holds any at all where `config.resume` is "never".
    """
    return _summary(workdir, config) if parallel.at_first(lambda: _is_finished(workdir, config)) else None


def _is_finished(workdir: Path, config: ConfigDict) -> bool:
    try:
        check_path(workdir)
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir is {str(workdir)!r}, which is a file; it must be a directory or not exist yet")
        refuse_special(workdir)
        if not (workdir / "provenance.json").exists():
            _check_empty(workdir)
            return False
        about = read_provenance(workdir)
        work = _has_work(workdir)
        if not (workdir / "config.json").exists():
            if work:
                raise damaged(workdir / "config.json")
            return False  # stopped before it was written
        if config.resume == "never":
            raise UserError(f"config.resume is 'never', but {workdir} holds earlier work; choose another --workdir")
        earlier = ConfigDict(_read_object(workdir / "config.json"))
        if not work:
            return False  # stopped before there was anything to keep
        _check_same(earlier, config, workdir)
        if not (workdir / checkpoint.SUMS).exists():
            _check_format(workdir, about, (FORMAT,))
            return False
        if name := checkpoint.damaged_file(workdir, [workdir / name for name in RESULTS]):
            raise damaged(workdir / name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--workdir is {str(workdir)!r}, which cannot be used: {reason}") from error
    return True


def _has_work(workdir: Path) -> bool:
    """Whether there is anything to keep: results, or a complete checkpoint."""
    done = any((workdir / name).exists() for name in ("runs.csv", checkpoint.SUMS))
    return done or any((workdir / CHECKPOINTS).glob(f"*/*/{checkpoint.SUMS}"))


def _check_empty(workdir: Path) -> None:
    """Refuse a directory that holds anything but what a process leaves that was killed at its very beginning."""
    for path in sorted(workdir.iterdir()) if workdir.exists() else ():
        if path.name != LOCK and not path.match(PARTIAL):
            raise UserError(
                f"--workdir is {str(workdir)!r}, which holds {path.name!r} and no 'provenance.json', so it is no "
                "workdir of this program; choose another one, or an empty directory"
            )


def read_provenance(workdir: Path) -> dict[str, Any]:
    """A workdir's `provenance.json`; refuses a workdir that another version wrote in another form."""
    path = workdir / "provenance.json"
    found = _read_object(path) if path.exists() else {}
    _check_format(workdir, found, READABLE)
    for key, kind in {"data_md5": dict, "implementations": dict, "earlier": list}.items():
        if not isinstance(found.get(key, None if found["format"] == FORMAT else kind()), kind):
            raise damaged(path, f"{key} is {found.get(key)!r}")
    return found


def _check_format(workdir: Path, about: Mapping[str, Any], known: Sequence[int]) -> None:
    there = about.get("format", 1)
    if there not in known:
        raise UserError(
            f"workdir {str(workdir)!r} was written by another version, in format {there!r}; "
            f"this version reads format {' and '.join(map(str, known))}"
        )


def earlier_implementations(workdir: Path) -> dict[str, str] | None:
    """What computed each network's layers in a workdir's work; None if there is no work."""
    return read_provenance(workdir).get("implementations", {}) if _has_work(workdir) else None


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides the numbers of a result, beside the program's version and the devices.

    Attributes:
      config: the config, checked.
      data_md5: MD5 of what the work is done on, by name.
      implementations: what computes the layers of each kind of network.
    """

    config: ConfigDict
    data_md5: Mapping[str, str]
    implementations: Mapping[str, str]

    def of(self, network: str) -> dict[str, Any]:
        """All of it by name, for one kind of network, JSON-able."""
        config = leaves(as_json(self.config)).items()
        return {
            "format": FORMAT,
            "network": network,
            **{f"config.{key}": value for key, value in config if key not in CHANGEABLE},
            **{f"data_md5.{name}": value for name, value in self.data_md5.items()},
            **{f"implementations.{name}": value for name, value in self.implementations.items()},
        }

    def fingerprint(self) -> str:
        """A digest of it all."""
        return hashlib.sha256(json.dumps(self.of(""), sort_keys=True).encode()).hexdigest()


@contextmanager
def opened(workdir: Path, identity: Identity, about: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Make the workdir, keep other programs out of it, and write what is known at the start.

    Yields what `finished` says of it then.

    Args:
      workdir: the directory.
      identity: what the work is.
      about: from `provenance`: what it is done with now.

    Raises:
      UserError: if it cannot be written, holds a link, or unfinished work on other data or computed otherwise, or
        if another program is at work in it.
    """
    lock = filelock.FileLock(workdir / LOCK, timeout=0)

    def begin() -> bool:
        try:
            refuse_links(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            if _is_finished(workdir, identity.config):
                return True
            before = read_provenance(workdir) if _has_work(workdir) else {}
            _check_identity(workdir, before, identity)
            for leftover in workdir.glob(PARTIAL):  # of a killed process
                leftover.unlink()
            # In this order: a workdir with a config also says its format.
            now = {**about, "data_md5": dict(identity.data_md5), "implementations": dict(identity.implementations)}
            write_json(workdir / "provenance.json", {**now, "earlier": _earlier(before, now)})
            write_json(workdir / "config.json", as_json(identity.config))
        except filelock.Timeout as error:
            raise UserError(
                f"--workdir is {str(workdir)!r}, in which another process is at work; choose another --workdir"
            ) from error
        except OSError as error:
            raise UserError(f"--workdir is {str(workdir)!r}, which cannot be written: {error.strerror}") from error
        return False

    try:
        yield _summary(workdir, identity.config) if parallel.at_first(begin) else None
    finally:
        lock.release()


def refuse_links(workdir: Path) -> None:
    """Refuse to write to a workdir that holds a symbolic link: what it points to is not the workdir's."""
    if link := first_link(workdir):
        raise UserError(f"--workdir is {str(workdir)!r}, which holds a symbolic link, {str(link)!r}; remove it")


def refuse_special(workdir: Path) -> None:
    """Refuse to read a workdir that holds a pipe, a device or a socket, before any of it is opened."""
    if special := first_special(workdir):
        raise UserError(f"{special} is neither a file nor a directory; remove it from the workdir")


def _check_identity(workdir: Path, about: Mapping[str, Any], identity: Identity) -> None:
    """Refuse to go on with work on other data, or with its layers computed otherwise."""
    check_data(workdir, about, identity.data_md5)
    for network, now in identity.implementations.items():
        there = about.get("implementations", {}).get(network, now)
        if there != now:
            raise UserError(
                f"workdir {str(workdir)!r}: the implementation of its {network} layers is {there!r}, here it is "
                f"{now!r}; go on with it on a machine as before, or choose another --workdir"
            )


def check_data(workdir: Path, about: Mapping[str, Any], data_md5: Mapping[str, str]) -> None:
    """Refuse data other than a workdir's work was done on.

    Args:
      workdir: where the work is.
      about: its `provenance.json`.
      data_md5: MD5 of the data here, by name.

    Raises:
      UserError: naming what differs.
    """
    for name, now in data_md5.items() if about else ():
        there = about.get("data_md5", {}).get(name)
        if there is None:
            cli.warn(f"{workdir / 'provenance.json'} does not say which data {name!r} was; it may be other data here")
        elif there != now:
            raise UserError(
                f"workdir {str(workdir)!r} was made with other data: the MD5 of {name!r} is {there} there, {now} here; "
                "TFDS_DATA_DIR, the data_dir flag or the config file says which data is read"
            )


def _earlier(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of earlier processes, in order; equal neighbours are listed once."""
    last = {key: value for key, value in before.items() if key not in ("earlier", "seconds")}
    return before.get("earlier", []) + [last] * (bool(last) and last != now)


def finish(workdir: Path, outcomes: Mapping[str, Outcome], figures: Mapping[str, "Figure"]) -> dict[str, Any]:
    """Write what there is to say at the end, mark the workdir as finished, drop the checkpoints.

    Returns:
      The summary.

    Raises:
      UserError: if parameters cannot be read back as they were written.
    """
    for name, figure in figures.items():
        with replacing(workdir / name) as file:
            figure.savefig(file, format="png", dpi=150)
    for network, outcome in outcomes.items():
        _check_params(workdir, network, outcome)
    seconds = {network: round(o.seconds, 1) for network, o in outcomes.items()}
    write_json(workdir / "provenance.json", {**read_provenance(workdir), "seconds": seconds})
    summary = {network: summarize(o) for network, o in outcomes.items()}
    write_json(workdir / "summary.json", summary)
    params = (file for folder in ("best", "params") for file in checkpoint.files_in(workdir / folder))
    checkpoint.write_sums(workdir, [*(workdir / name for name in RESULTS), *params])
    shutil.rmtree(workdir / CHECKPOINTS)
    return summary


def damaged(path: Path, reason: str = "") -> UserError:
    """What is said of a file that is not as it was written."""
    return UserError(f"{path} is damaged{reason and f': {reason}'}; remove the workdir or choose another --workdir")


def check_summary(path: Path, summary: Mapping[str, Any], networks: Sequence[str]) -> None:
    """Refuse a `summary.json` that is not what `summarize` gives for each of these kinds of network."""
    if set(summary) != set(networks):
        raise damaged(path, f"it must have an entry of each of {', '.join(networks)}, and no others")
    for network, entry in summary.items():
        if not isinstance(entry, dict):
            raise damaged(path, f"the entry of {network} is {entry!r}")
        for key in (*INTEGERS, *NUMBERS):
            value = entry.get(key, "missing")
            number = isinstance(value, int if key in INTEGERS else (int, float)) and not isinstance(value, bool)
            if not (number and abs(value) <= sys.float_info.max) and not (value is None and key in NUMBERS):
                raise damaged(path, f"{key} of {network} is {value!r}")


def _summary(workdir: Path, config: ConfigDict) -> dict[str, Any]:
    """A finished workdir's `summary.json`; the config is that of its work."""
    path = workdir / "summary.json"
    summary = _read_object(path)
    check_summary(path, summary, config.networks if "search" in config else (config.block,))
    return summary


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise damaged(path)
    return value


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A config as it is written to a workdir, and read back."""
    return json.loads(config.to_json())


def _check_same(there: ConfigDict, now: ConfigDict, workdir: Path) -> None:
    tables = leaves(there), leaves(as_json(now))
    before, after = ({key: value for key, value in t.items() if key not in CHANGEABLE} for t in tables)
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
    write_whole(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON at once or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def provenance(mesh: Mesh, runs_per_batch: int | None) -> dict[str, Any]:
    """What a process works with: commit, versions, hardware, and how runs and batches are split over it.

    Args:
      mesh: the devices.
      runs_per_batch: as the config has it.
    """
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
        "mesh": list(mesh.devices.shape),
        "runs_per_batch": runs_per_batch,
        "xla_flags": os.environ.get("XLA_FLAGS"),
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
        ranking = population.rank(outcome.train_loss)
        rank_of = np.argsort(ranking.order) + 1
        last = {name: outcome.last_accuracy(name) for name in outcome.accuracy}
        curved = outcome.accuracy if accuracy_curves else {}
        for index, (run, losses) in enumerate(zip(outcome.runs, outcome.train_loss, strict=True)):
            hyperparameters = {name: values[index] for name, values in outcome.hyperparameters.items()}
            if not KINDS[network].gated:
                hyperparameters["transform_bias"] = None
            runs.append(
                {
                    "network": network,
                    "run": run,
                    "rank": rank_of[index],
                    **hyperparameters,
                    "best_loss": ranking.best[index],
                    "best_epoch": ranking.best_epoch[index],
                    "final_loss": ranking.final[index],
                    "diverged": bool(ranking.diverged[index]),
                    "epochs": ranking.epochs[index],
                    **{name: accuracy[index] for name, accuracy in last.items()},
                }
            )
            for epoch, loss in enumerate(losses[: ranking.epochs[index]]):
                accuracy = {name: table[index, epoch] for name, table in curved.items()}
                curves.append({"network": network, "run": run, "epoch": epoch + 1, "train_loss": loss, **accuracy})
    _write_table(directory / "runs", runs)
    _write_table(directory / "curves", curves)


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with replacing(path.with_suffix(".csv")) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
        text.flush()
    path.with_suffix(".parquet").unlink(missing_ok=True)
    if importlib.util.find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({column: [row[column] for row in rows] for column in rows[0]})
        with replacing(path.with_suffix(".parquet")) as file:
            pyarrow.parquet.write_table(table, file)


def write_results(directory: Path, network: str, outcomes: Mapping[str, Outcome], accuracy_curves: bool) -> None:
    """Write the tables, and a network's parameters: `best/NETWORK`, and any final ones as `params/NETWORK/runN`.

    Its earlier parameters go first, so that tables never stand beside parameters of other epochs.

    Args:
      directory: the workdir.
      network: the kind of network that has just been trained.
      outcomes: what there is of all kinds.
      accuracy_curves: whether accuracies go into the curves.
    """
    for parent in "best", "params":
        shutil.rmtree(directory / parent / network, ignore_errors=True)
    write_tables(directory, outcomes, accuracy_curves)
    for name, params in _params(network, outcomes[network]):
        checkpoint.save_params(directory / name, params)


def _params(network: str, outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """The parameters that are results, by the name of their directory."""
    yield f"best/{network}", outcome.best_params
    for run, params in outcome.params.items():
        yield f"params/{network}/run{run}", params


def _check_params(directory: Path, network: str, outcome: Outcome) -> None:
    """Refuse to call work finished whose parameters are not found as they were written."""
    for name, params in _params(network, outcome):
        try:
            there = checkpoint.restore_params(directory / name)
            same = all(jax.tree.leaves(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), there, params)))
        except Exception as error:  # Orbax and TensorStore have many
            raise UserError(f"{directory / name} cannot be read back: {files.first_line(error)}") from error
        if not same:
            raise UserError(f"{directory / name} holds other parameters than were written to it")


def summarize(outcome: Outcome) -> dict[str, Any]:
    """One network's entry of `summary.json`; a number that is not finite becomes null."""
    ranking = population.rank(outcome.train_loss)
    best = int(ranking.order[0])
    summary = {
        "best_loss": float(ranking.best[best]),
        "best_run": int(outcome.runs[best]),
        "top10_mean_loss": ranking.mean_of_best(10),
        "median_loss": ranking.median(),
        "diverged": int(ranking.diverged.sum()),
        "num_runs": len(outcome.train_loss),
        "best_run_test_accuracy": float(outcome.last_accuracy("test_accuracy")[best]),
        "seconds": round(outcome.seconds, 1),
    }
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
