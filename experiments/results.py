"""Read a search's workdir back: its config, its runs and their training curves."""

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import workdir
from experiments.cli import UserError
from highway_jax import checkpoint, search
from highway_jax.activations import ACTIVATIONS
from highway_jax.models import stages

INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
HYPERPARAMETERS = ("learning_rate", "momentum", "decay", "activation", "transform_bias")
OUTCOMES = ("run", "rank", "best_loss", "best_epoch", "final_loss", "diverged", "epochs", "test_accuracy")
CONFIG_TYPES = {"dataset": str, "num_runs": int, "first_run": int, "epochs": int}


@dataclass(frozen=True)
class NetworkResult:
    """The runs of one kind of network: arrays with a leading axis of runs, by run number.

    Attributes:
      hyperparameters: a (runs,) array each of `HYPERPARAMETERS`: names for the activation, float32 for the rest;
        transform_bias is NaN where the network has no gates.
      run: (runs,) int, the runs' numbers, ascending.
      rank: (runs,) int, 1 is the best.
      best_loss: (runs,) float32, in nats; inf if the run never had a finite loss.
      best_epoch: (runs,) int, the epoch of that loss, from 1; 0 if there is none.
      final_loss: (runs,) float32, after the run's last epoch; inf if it has diverged.
      diverged: (runs,) bool.
      epochs: (runs,) int, how many the run was trained for.
      test_accuracy: (runs,) float32, NaN if it is not known yet.
      curves: (runs, epochs so far) float32, every epoch's mean training loss; NaN where it was not trained.
      accuracy_curves: likewise the accuracies on the test set; all NaN where they were not written.
    """

    hyperparameters: dict[str, np.ndarray]
    run: np.ndarray
    rank: np.ndarray
    best_loss: np.ndarray
    best_epoch: np.ndarray
    final_loss: np.ndarray
    diverged: np.ndarray
    epochs: np.ndarray
    test_accuracy: np.ndarray
    curves: np.ndarray
    accuracy_curves: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """(runs,) indices of the runs, the best first."""
        return np.argsort(self.rank)

    def mean_of_best(self, count: int) -> float:
        """Mean best loss of the best `count` runs."""
        return float(self.best_loss[self.order[:count]].mean(dtype=float))

    def curve(self, run: int) -> np.ndarray:
        """(epochs,) training losses of the run of that number, as long as it was trained."""
        return self.curves[run - self.run[0], : self.epochs[run - self.run[0]]]


@dataclass(frozen=True)
class Result:
    """What a workdir holds.

    Attributes:
      directory: where it is.
      config: of the search.
      kinds: the kinds of network that are trained.
      depth: their layers, as the paper counts them.
      networks: what was found with every kind of network that has results, in that order.
      provenance: commit, versions, hardware, and seconds once it is finished.
      summary: an entry per network; None if the search is unfinished.
    """

    directory: Path
    config: ConfigDict
    kinds: tuple[str, ...]
    depth: int
    networks: dict[str, NetworkResult]
    provenance: dict[str, Any]
    summary: dict[str, Any] | None


def load(directory: str | Path) -> Result:
    """Read a workdir, that of an unfinished search included; float32 values come back as they were.

    Raises:
      UserError: naming the file that is missing, cannot be read or is damaged.
    """
    directory = Path(directory)
    if not _exists(directory):
        raise UserError(f"workdir {str(directory)!r} does not exist")
    if not directory.is_dir():
        raise UserError(f"workdir {str(directory)!r} is a file; it must be a search's workdir")
    config, kinds, depth = _read_config(directory / "config.json")
    provenance = workdir.read_provenance(directory)
    if (directory / checkpoint.SUMS).exists() and (name := checkpoint.damaged_file(directory, [])):
        raise workdir.damaged(directory / name)
    path = directory / "summary.json"
    summary = read_json(path) if _exists(path) else None
    networks = _read_networks(directory, config, kinds, finished=summary is not None)
    if summary is not None and not (summary.keys() == networks.keys() and all(map(_is_object, summary.values()))):
        raise _damaged(path, f"it must have an entry of each of {', '.join(networks)}")
    return Result(directory, config, kinds, depth, networks, provenance, summary)


def best_mean_std(accuracy: np.ndarray) -> str:
    """Runs' accuracies in percent as the paper's tables have them: "best (mean ± standard deviation)", or the only one.

    The deviation is the sample's (n - 1). A run that has diverged leaves its mark on the mean: nan.
    """
    percent = 100 * np.asarray(accuracy, np.float64)
    if len(percent) == 1:
        return f"{percent[0]:.2f}"
    best = np.nanmax(percent) if np.isfinite(percent).any() else np.nan
    return f"{best:.2f} ({percent.mean():.2f} ± {percent.std(ddof=1):.2f})"


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object."""
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is no JSON") from error
    if not _is_object(value):
        raise _damaged(path, "it must be a JSON object")
    return value


def _read_config(path: Path) -> tuple[ConfigDict, tuple[str, ...], int]:
    config = read_json(path)
    for key, kind in CONFIG_TYPES.items():
        value = config.get(key)
        if (
            not isinstance(value, kind)
            or isinstance(value, bool)
            or (isinstance(value, int) and value < (key != "first_run"))
        ):
            raise _damaged(path, f"{key} is {value!r}")
    try:
        kinds = config["networks"] if "networks" in config else [config["block"]]
        if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) for kind in kinds):
            raise ValueError(f"networks is {kinds!r}")
        depth = stages.depth(config["stages"]) if "stages" in config else config["depth"]
        if type(depth) is not int:
            raise ValueError(f"depth is {depth!r}")
        return ConfigDict(config), tuple(kinds), depth
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_networks(
    directory: Path, config: ConfigDict, kinds: tuple[str, ...], finished: bool
) -> dict[str, NetworkResult]:
    path = directory / "runs.csv"
    if not _exists(path):
        raise UserError(f"{path} is missing; the search has written no results yet, or this is no search's workdir")
    runs = _read_table(path, ("network", *HYPERPARAMETERS, *OUTCOMES))
    curves = _read_curves(directory / "curves.csv")
    if strangers := (set(runs["network"].tolist()) | curves["train_loss"].keys()) - set(kinds):
        raise _damaged(path, f"network {min(strangers)!r} is not one of the config's")

    networks, nothing = {}, np.empty((0, 0), np.float32)
    for network in kinds:
        rows = np.flatnonzero(runs["network"] == network)
        if not len(rows) and not finished:
            continue
        table = {name: column[rows] for name, column in runs.items()}
        try:
            number = _integers(table["run"])
            rows = np.argsort(number)
            first, last = config.first_run, config.first_run + config.num_runs - 1
            enough = len(rows) == config.num_runs if finished else 0 < len(rows) <= config.num_runs
            if not enough or (number[rows] != first + np.arange(len(rows))).any():
                raise ValueError(f"the {network} runs must be {first} to {last}")
            table = {name: column[rows] for name, column in table.items()}
            result = NetworkResult(
                {h: table[h] if h == "activation" else _floats(table[h]) for h in HYPERPARAMETERS},
                curves=curves["train_loss"].get(network, nothing),
                accuracy_curves=curves["test_accuracy"].get(network, nothing),
                diverged=_booleans(table["diverged"]),
                **{name: _integers(table[name]) for name in ("run", "rank", "best_epoch", "epochs")},
                **{name: _floats(table[name]) for name in ("best_loss", "final_loss", "test_accuracy")},
            )
            if strangers := set(table["activation"].tolist()) - set(ACTIVATIONS):
                raise ValueError(f"activation is {min(strangers)!r}; it must be one of {', '.join(ACTIVATIONS)}")
            if sorted(result.rank) != list(range(1, len(number) + 1)):
                raise ValueError(f"the {network} ranks must be 1 to {len(number)}")
        except ValueError as error:
            raise _damaged(path, error) from error
        _check_curves(directory / "curves.csv", network, result, config.epochs if finished else None)
        networks[network] = result
    return networks


def _read_curves(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """For both columns, every network's (runs, epochs) numbers; NaN where there is no row, or no accuracy."""
    table = _read_table(path, ("network", "run", "epoch", "train_loss"), ("test_accuracy",))
    try:
        runs, epochs = _integers(table["run"]), _integers(table["epoch"])
        columns = {name: _floats(table[name]) for name in ("train_loss", "test_accuracy")}
    except ValueError as error:
        raise _damaged(path, error) from error
    curves: dict[str, dict[str, np.ndarray]] = {name: {} for name in columns}
    for network in dict.fromkeys(table["network"].tolist()):
        rows = table["network"] == network
        run, epoch = runs[rows] - runs[rows].min(), epochs[rows] - 1
        # Before an array of that size is made: no row twice, none of a number that the rows cannot fill.
        if epoch.min() < 0 or max(run.max(), epoch.max()) >= len(run):
            raise _damaged(path, f"a run or epoch of {network} is out of range")
        if len(np.unique(run * len(run) + epoch)) < len(run):
            raise _damaged(path, f"an epoch of {network} is there twice")
        for name, column in columns.items():
            curves[name][network] = np.full((run.max() + 1, epoch.max() + 1), np.nan, np.float32)
            curves[name][network][run, epoch] = column[rows]
    return curves


def _check_curves(path: Path, network: str, result: NetworkResult, epochs: int | None) -> None:
    """Refuse curves that are not those of `runs.csv`; `epochs` is how many there must be in a finished search."""
    curves = result.curves
    if len(curves) != len(result.run):
        raise _damaged(path, f"it has {len(curves)} runs of {network}, where runs.csv has {len(result.run)}")
    if epochs is None:
        return  # the search goes on, and the two files are not of one moment
    if curves.shape[1] != epochs:
        raise _damaged(path, f"it has {curves.shape[1]} epochs of {network}, where the config has {epochs}")
    ranking = search.rank(curves)
    for name in ("best_loss", "best_epoch", "final_loss", "diverged", "epochs", "order"):
        if not np.array_equal(getattr(result, name), getattr(ranking, name)):
            raise _damaged(path, f"the {name} of {network}'s runs is not that of runs.csv")


def _read_table(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """A CSV file's columns as text, the optional ones empty where it lacks them; further columns are left out."""
    text = _read_text(path)
    try:
        header, *rows = csv.reader(io.StringIO(text), strict=True)
    except (csv.Error, ValueError) as error:
        raise _damaged(path, "it is no table") from error
    if missing := [column for column in columns if header.count(column) != 1]:
        raise _damaged(path, f"it must have a column {missing[0]!r}")
    if not rows or not text.endswith("\n") or any(len(row) != len(header) for row in rows):
        raise _damaged(path, "it is cut off, or a row has another number of fields than the header")
    fields = dict.fromkeys(optional, ("",) * len(rows)) | dict(zip(header, zip(*rows, strict=True), strict=True))
    columns += optional
    if max(len(field) for column in columns for field in fields[column]) > 100:  # it would be every field's size
        raise _damaged(path, "a field is too long")
    return {column: np.array(fields[column]) for column in columns}


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {str(path.parent)!r} must be a search's workdir") from error
    except UnicodeDecodeError as error:
        raise _damaged(path, "it is no text") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if "\0" in text:  # what a crash can leave of a file
        raise _damaged(path, "it is no text")
    return text


def _floats(column: np.ndarray) -> np.ndarray:
    """float32 of text; an empty field is NaN."""
    return np.where(column == "", "nan", column).astype(np.float32)


def _integers(column: np.ndarray) -> np.ndarray:
    if strange := [text for text in column.tolist() if not INTEGER.fullmatch(text)]:
        raise ValueError(f"{strange[0]!r} is no integer")
    return column.astype(int)


def _booleans(column: np.ndarray) -> np.ndarray:
    if strange := set(column.tolist()) - {"True", "False"}:
        raise ValueError(f"diverged is {min(strange)!r}; it must be True or False")
    return column == "True"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, a null byte
        return False


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(f"{path} is damaged: {reason}")
