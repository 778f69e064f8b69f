"""Read a workdir back: its config, provenance, results and parameters."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.configs import convolutional, figure1
from experiments.configs.keys import config_of, leaves
from experiments.workdir import files, writing
from experiments.workdir.contents import Workdir
from experiments.workdir.files import damaged, read_json
from experiments.workdir.identity import FREE
from highway_jax import checkpoint, population
from highway_jax.files import first_line
from highway_jax.functional.activations import ACTIVATIONS
from highway_jax.population import Result, tables
from highway_jax.zoo import stages

if TYPE_CHECKING:
    import pandas

HYPERPARAMETERS = ("learning_rate", "momentum", "decay", "activation", "transform_bias")
# The columns of `runs.csv` that are read, with a function that reads each.
COLUMNS: dict[str, Callable[[Any], np.ndarray]] = {
    **dict.fromkeys((*HYPERPARAMETERS, "best_loss", "final_loss", *writing.ACCURACIES), tables.floats),
    **dict.fromkeys(("run", "rank", "best_epoch", "epochs"), tables.integers),
    "activation": np.array,
    "diverged": tables.truths,
}
CURVES = ("run", "epoch", "train_loss", *writing.ACCURACIES)
# The keys that configs of every version have, of searches or of trainings.
REQUIRED = ("dataset", "num_runs", "first_run", "epochs", "batch_size", "seed", "networks", "depth", "block")


def load(directory: str | Path) -> Workdir:
    """Read a workdir, finished or not; float32 values are read back exactly.

    Raises:
      UserError: if a file is missing, cannot be read or is damaged; the message names it.
    """
    directory = Path(directory)
    if not _exists(directory):
        raise UserError(f"workdir {str(directory)!r} does not exist")
    if not directory.is_dir():
        raise UserError(f"workdir {str(directory)!r} is a file; it must be a workdir")
    files.refuse_special(directory)
    if _exists(directory / tables.SEARCH) and not _exists(directory / "config.json"):
        return _own(directory)
    config = _read_config(directory / "config.json")
    kinds, depth = (
        (config.networks, config.depth) if "search" in config else ((config.block,), stages.depth(config.stages))
    )
    provenance = files.read_provenance(directory)
    if (directory / checkpoint.SUMS).exists() and (name := checkpoint.damaged_file(directory, [])):
        raise damaged(directory / name, "its checksum is wrong")
    finished = _exists(directory / "summary.json")
    results = _read_results(directory, config, kinds, provenance, finished)
    return Workdir(directory, config, kinds, depth, results, provenance, finished)


def _own(directory: Path) -> Workdir:
    """Read a workdir of `population.fit`."""
    try:
        result = population.load(directory)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    config = ConfigDict({"num_runs": result.num_runs, **{name: getattr(result, name) for name in tables.FACTS}})
    return Workdir(directory, config, ("runs",), 0, {"runs": result}, {}, result.finished)


def read_params(found: Workdir, file: Path) -> Any:
    """Read a network's parameters; in a finished workdir their checksums are verified first.

    Raises:
      UserError: if the parameters are damaged, or the file holds none.
    """
    sums = found.directory / checkpoint.SUMS
    if sums.exists() and (name := checkpoint.damaged_file(found.directory, checkpoint.files_in(file))):
        raise damaged(found.directory / name, "its checksum is wrong")
    try:
        return checkpoint.restore_params(file)
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise UserError(f"{file} is damaged, or holds no parameters: {first_line(error)}") from error


def check_params(file: Path, params: Any, network: nn.Module, inputs: Any) -> None:
    """Refuse parameters whose names, shapes or dtypes are not those of a network.

    Args:
      file: the checkpoint that the parameters were read from.
      params: the parameters.
      network: the model that the workdir's config describes.
      inputs: a batch of its inputs.

    Raises:
      UserError: if the parameters do not fit the network, or the network does not fit the inputs.
    """
    try:
        expected = jax.eval_shape(lambda: network.init(jax.random.key(0), inputs))["params"]
    except ValueError as error:
        raise UserError(f"{file}: the workdir's config does not describe a network: {first_line(error)}") from error
    there, needed = (
        jax.tree.map(lambda leaf: (np.shape(leaf), getattr(leaf, "dtype", None)), tree) for tree in (params, expected)
    )
    if there != needed:
        raise UserError(f"{file} does not fit the workdir's config: its parameters are of another network")


def _read_config(path: Path) -> ConfigDict:
    """Read and check a config; keys that older versions did not have get their defaults."""
    there = read_json(path)
    if ("search" in there) == ("stages" in there):
        raise damaged(path, "it must have either search or stages")
    keys = figure1.KEYS if "search" in there else convolutional.KEYS
    values = {name: value for name, value in leaves(there).items() if name not in FREE}
    values |= {name: there[name] for name in keys if isinstance(there.get(name), dict)}
    for name in REQUIRED:
        if name in keys and name not in values:
            raise damaged(path, f"it has no {name!r}")
    for name, value in values.items():
        if inside := [key for key in keys if key.startswith(f"{name}.")]:
            raise damaged(path, f"{name} is {value!r}; it must have {inside[0]}")
        try:
            if name in keys:
                keys[name].checked(value)
        except ValueError as error:
            raise damaged(path, f"{name} is {value!r}; it must be {error}") from error
    config = config_of(keys)
    with config.ignore_type():
        tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        config.update_from_flattened_dict(tuples)
    return config


def _read_results(
    directory: Path, config: ConfigDict, kinds: tuple[str, ...], provenance: dict[str, Any], finished: bool
) -> dict[str, Result]:
    """Read the results of every kind of network from `runs.csv` and `curves.csv`."""
    runs = _read_table(directory / "runs.csv", ("network", "run", "rank", *HYPERPARAMETERS), kinds)
    curves = _read_table(directory / "curves.csv", ("network", "run", "epoch", "train_loss"), kinds)
    results: dict[str, Result] = {}
    for kind in kinds:
        mine, losses = runs[runs["network"] == kind], curves[curves["network"] == kind]
        if not finished and not (len(mine) and len(losses)):
            continue  # a search in progress may have written only one of the files
        with _damage(directory / "runs.csv"):
            values = _read_runs(kind, mine, config, finished)
        seconds = provenance.get("seconds", {}).get(kind, 0.0)
        with _damage(directory / "curves.csv"):
            if finished and tables.integers(losses["epoch"]).max(initial=0) != config.epochs:
                raise ValueError(f"the epochs of {kind} must be 1 to {config.epochs}")
            result = Result(
                runs=values["run"],
                hyperparameters={name: values[name] for name in HYPERPARAMETERS},
                curves=_read_curves(values, losses),
                rank_by="train_loss",
                mode="min",
                epochs=config.epochs,
                seconds=seconds,
                finished=finished,
            )
            if finished:
                _check_outcomes(kind, values, result, provenance["format"])
        results[kind] = result
    return results


def _read_table(path: Path, columns: tuple[str, ...], kinds: tuple[str, ...]) -> "pandas.DataFrame":
    try:
        table = tables.read_table(path, columns)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing; the search has written no results yet, or this is not a search's workdir"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise damaged(path, error) from error
    if strangers := set(table["network"]) - set(kinds):
        raise damaged(path, f"network {min(strangers)[:40]!r} is not one of the config's")
    return table


def _read_runs(kind: str, rows: "pandas.DataFrame", config: ConfigDict, finished: bool) -> dict[str, np.ndarray]:
    """The columns of one kind's rows of `runs.csv`, in the order of run numbers."""
    numbers = tables.integers(rows["run"])
    expected = config.first_run + np.arange(config.num_runs if finished else min(len(rows), config.num_runs))
    if not np.array_equal(np.sort(numbers), expected):
        raise ValueError(f"the {kind} runs must be {expected[0]} to {config.first_run + config.num_runs - 1}")
    if strangers := set(rows["activation"]) - set(ACTIVATIONS):
        raise ValueError(f"activation is {min(strangers)[:40]!r}; it must be one of {', '.join(ACTIVATIONS)}")
    order = np.argsort(numbers)
    columns = {}
    for name, read in COLUMNS.items():
        if name in rows:
            try:
                columns[name] = read(rows[name])[order]
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return columns


def _read_curves(values: Mapping[str, np.ndarray], rows: "pandas.DataFrame") -> dict[str, np.ndarray]:
    """One kind's curves of losses and accuracies; `runs.csv` has the last accuracies."""
    curves = tables.read_curves(rows[[name for name in CURVES if name in rows]], values["run"])
    every, last = np.arange(len(values["run"])), np.maximum(population.rank(curves).epochs, 1) - 1
    for name in writing.ACCURACIES:
        if name in values and name not in curves:
            curves[name] = np.full_like(curves["train_loss"], np.nan)
            curves[name][every, last] = values[name]
    return curves


def _check_outcomes(kind: str, values: Mapping[str, np.ndarray], result: Result, format: int) -> None:
    """Refuse curves that contradict `runs.csv`."""
    derived = writing.runs_table(kind, result)
    for name in ("best_loss", "final_loss", "best_epoch", "diverged", "epochs", "rank"):
        there, here = values.get(name, np.empty(0)), derived[name].to_numpy()
        if name == "rank" and format < files.FORMAT:  # `best` holds the parameters of this run
            there, here = there[here == 1], here[here == 1]
        if not np.array_equal(there, here):
            raise ValueError(f"the {name} of {kind}'s runs is not that of runs.csv")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn ValueError into an error that names the damaged file."""
    try:
        yield
    except ValueError as error:
        raise damaged(path, error) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, a null byte
        return False
