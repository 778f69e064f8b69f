"""Read a search's workdir back: its config, its runs and their training curves."""

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import cli, workdir
from experiments.cli import UserError
from experiments.configs.convolutional import training
from experiments.configs.figure1 import WIDTHS, random_search
from highway_jax import checkpoint, files, population
from highway_jax.functional.activations import ACTIVATIONS
from highway_jax.zoo import stages

INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
HYPERPARAMETERS = ("learning_rate", "momentum", "decay", "activation", "transform_bias")
OUTCOMES = ("run", "rank", "best_loss", "best_epoch", "final_loss", "diverged", "epochs", "test_accuracy")
POSITIVE = ("num_runs", "epochs")
LARGEST = 2**63  # of a config's integers


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
    workdir.refuse_special(directory)
    config, kinds, depth = _read_config(directory / "config.json")
    provenance = workdir.read_provenance(directory)
    if (directory / checkpoint.SUMS).exists() and (name := checkpoint.damaged_file(directory, [])):
        raise workdir.damaged(directory / name)
    path = directory / "summary.json"
    summary = read_json(path) if _exists(path) else None
    networks = _read_networks(directory, config, kinds, finished=summary is not None)
    if summary is not None:
        workdir.check_summary(path, summary, list(networks))
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


def defaults(config: ConfigDict | dict[str, Any]) -> ConfigDict:
    """The programs' config of the same kind, a search's or a training's, with the value of every key by default."""
    return random_search("digits", 2, 1, 1) if "search" in config else training("digits", (), 1)


def as_program_has_it(read: ConfigDict) -> ConfigDict:
    """A config read from a workdir, with the types that JSON forgets; where and how it is run is left to defaults."""
    config = defaults(read)
    with config.ignore_type():
        for key, value in cli.leaves(read).items():
            if key not in (*workdir.FREE, *workdir.ROUNDING):
                config.update_from_flattened_dict({key: value})
    return config


@contextmanager
def naming_config(found: Result) -> Iterator[None]:
    """What is wrong with a workdir's config is said with the name of the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{found.directory / 'config.json'}: {error}") from error


def read_params(found: Result, file: Path) -> Any:
    """Read a network's parameters, of a finished workdir only if they are as they were written.

    Raises:
      UserError: if they are not, or are none.
    """
    sums = found.directory / checkpoint.SUMS
    if sums.exists() and (name := checkpoint.damaged_file(found.directory, checkpoint.files_in(file))):
        raise workdir.damaged(found.directory / name)
    try:
        return checkpoint.restore_params(file)
    except Exception as error:  # Orbax and TensorStore have many
        raise UserError(f"{file} is damaged, or holds no parameters: {files.first_line(error)}") from error


def check_params(file: Path, params: Any, network: nn.Module, inputs: Any) -> None:
    """Refuse parameters read from a workdir that do not have the names, shapes and dtypes of a network's.

    Args:
      file: where they were read.
      params: what was read.
      network: a model, built as the workdir's config says.
      inputs: a batch of what it takes.

    Raises:
      UserError: if they do not, or the network does not fit the inputs.
    """
    try:
        expected = jax.eval_shape(lambda: network.init(jax.random.key(0), inputs))["params"]
    except ValueError as error:
        raise UserError(f"{file}: the workdir's config is of no network: {files.first_line(error)}") from error
    there, needed = (
        jax.tree.map(lambda leaf: (np.shape(leaf), getattr(leaf, "dtype", None)), tree) for tree in (params, expected)
    )
    if there != needed:
        raise UserError(f"{file} does not fit the workdir's config: its parameters are of another network")


def _read_config(path: Path) -> tuple[ConfigDict, tuple[str, ...], int]:
    config = read_json(path)
    is_search = "search" in config
    if is_search == ("stages" in config):
        raise _damaged(path, "it must have either search or stages")
    for key in ("dataset", "num_runs", "first_run", "epochs", *(("networks", "depth") if is_search else ("block",))):
        if key not in config:
            raise _damaged(path, f"it has no {key!r}")
    _check_types(path, config, defaults(config))
    for key in POSITIVE:
        if config[key] < 1:
            raise _damaged(path, f"{key} is {config[key]}")
    try:
        kinds = config["networks"] if is_search else [config["block"]]
        kinds = [kinds] if isinstance(kinds, str) else kinds
        allowed = tuple(WIDTHS if is_search else stages.KINDS)
        if not kinds or len(kinds) > len(allowed) or not all(kind in allowed for kind in kinds):
            raise ValueError(f"networks is {kinds!r}; they must be of {', '.join(allowed)}")
        depth = config["depth"] if is_search else stages.depth(config["stages"])
        return ConfigDict(config), tuple(dict.fromkeys(kinds)), depth
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _check_types(path: Path, config: dict[str, Any], known: ConfigDict, prefix: str = "") -> None:
    """Refuse values of other types than the programs' configs have; keys that these lack may have any.

    A number may stand for a range or the other way round, and a single name for several.
    """
    for key in config.keys() & known.keys():
        value, default, kind = config[key], known.get(key), known.get_type(key)
        if kind is ConfigDict:
            if not _is_object(value):
                raise _damaged(path, f"{prefix}{key} is {value!r}")
            _check_types(path, value, known[key], f"{prefix}{key}.")
            continue
        numbers = (int, float) if kind in (float, tuple) else (kind,)
        allowed = (*numbers, *((str, list) if kind is tuple else (list,) if kind is float else ()))
        fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
        if isinstance(value, int) and abs(value) >= LARGEST:
            fits = False
        if not fits and not (value is None and default is None):
            raise _damaged(path, f"{prefix}{key} is {value!r}")


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
    ranking = population.rank(curves)
    derived = {"best_loss": ranking.best, "final_loss": ranking.final}
    derived |= {name: getattr(ranking, name) for name in ("best_epoch", "diverged", "epochs")}
    for name, here in derived.items():
        if not np.array_equal(getattr(result, name), here):
            raise _damaged(path, f"the {name} of {network}'s runs is not that of runs.csv")
    # Until format 4 a run that diverged was ranked by what it had before.
    earlier = np.argsort(ranking.best, kind="stable")
    if not any(np.array_equal(result.order, order) for order in (ranking.order, earlier)):
        raise _damaged(path, f"the order of {network}'s runs is not that of runs.csv")


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
