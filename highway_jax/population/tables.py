"""Write the numbers of a result to files that pandas and spreadsheets read, and read them back."""

import io
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from highway_jax.files import replacing, write_whole
from highway_jax.population.result import Result

if TYPE_CHECKING:
    import pandas

SEARCH, RUNS, CURVES = "search.json", "runs.csv", "curves.csv"
FILES = (SEARCH, RUNS, CURVES)
FORMAT = 1
# The attributes of a result in `search.json`, and their types.
FACTS: dict[str, type | tuple[type, ...]] = {
    "rank_by": str,
    "mode": str,
    "epochs": int,
    "seeds": int,
    "seconds": (int, float),
    "finished": bool,
}


def save(result: Result, directory: str | Path) -> None:
    """Write the numbers of a result to `search.json`, `runs.csv` (its table) and `curves.csv`.

    `load` restores float32 values exactly. Each file is replaced atomically.

    Args:
      result: a result, finished or not.
      directory: where to write the files; it is created if it does not exist.

    Raises:
      OSError: if a file cannot be written.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    table = result.table()
    kinds = {name: table[name].dtype.name for name in result.hyperparameters}
    facts = {name: getattr(result, name) for name in FACTS}
    write_table(Path(directory) / RUNS, table)
    write_table(Path(directory) / CURVES, result.curves_table())
    about = {"format": FORMAT, **facts, "hyperparameters": kinds}
    write_whole(Path(directory) / SEARCH, (json.dumps(about, indent=2) + "\n").encode())


def load(directory: str | Path) -> Result:
    """Read the numbers that `fit` wrote to a workdir or `save` to a directory.

    The result has no states of runs, so `best` and `run` raise a `ValueError`. Its curves end with the last epoch of
    any run. Hyperparameters other than numbers and truth values are text, as in the table.

    Args:
      directory: the directory with the files.

    Returns:
      A `Result` without states.

    Raises:
      OSError: if a file is missing or cannot be read.
      ValueError: if a file is damaged; the message names it.

    Example:
      ```python
      result = population.load("runs/mine")
      result.table()
      ```
    """
    path = Path(directory) / SEARCH
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        for name, kind in FACTS.items():
            value = about[name]
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                raise ValueError(f"{name} is {value!r}")
        if not (about["epochs"] > 0 and about["seeds"] > 0 and 0 <= about["seconds"] < math.inf):
            raise ValueError("epochs, seeds or seconds is out of range")
        kinds = dict(about["hyperparameters"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    path = Path(directory) / RUNS
    try:
        table = read_table(path, ("run", *kinds))
        runs = integers(table["run"])
        values = {name: _values(table[name], kind) for name, kind in kinds.items()}
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    path = Path(directory) / CURVES
    try:
        curves = read_curves(read_table(path, ("run", "epoch", about["rank_by"])), runs)
        result = Result(runs, values, curves, **{name: about[name] for name in FACTS})
        result.ranking  # noqa: B018  raises for curves and modes that rank nothing
    except ValueError as error:
        raise _damaged(path, error) from error
    return result


def write_table(path: Path, table: "pandas.DataFrame", missing: str = "") -> None:
    """Write a table to a CSV file atomically; `missing` stands for NaN."""
    with replacing(path) as file:
        table.to_csv(file, index=False, lineterminator="\n", na_rep=missing)


def read_table(path: Path, columns: Iterable[str]) -> "pandas.DataFrame":
    """Read a CSV file, with every field as text.

    Args:
      path: the file.
      columns: the columns that it must have.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is not a table with these columns, or is truncated.
    """
    import pandas

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is no text") from error
    if "\0" in text:  # a crash can leave a file full of zeros
        raise ValueError("it is no text")
    if not text.endswith("\n"):
        raise ValueError("it is cut off")
    try:
        with warnings.catch_warnings(action="error", category=pandas.errors.ParserWarning):  # for long rows
            table = pandas.read_csv(io.StringIO(text), dtype=str, na_filter=False, index_col=False)
    except (ValueError, pandas.errors.ParserWarning) as error:
        raise ValueError("it is no table") from error
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"it must have a column {missing[0]!r}")
    if not len(table):
        raise ValueError("it has no rows")
    return table


def read_curves(table: "pandas.DataFrame", runs: np.ndarray) -> dict[str, np.ndarray]:
    """Read curves from a table with a row per `run` and `epoch`.

    Args:
      table: the table, with every field as text.
      runs: the numbers of all runs, ascending.

    Returns:
      Metrics by name, each float32 of shape (runs, epochs), with NaN where there is no row.

    Raises:
      ValueError: if a row is of an unknown run or an impossible epoch, or there are two rows for the same epoch.
    """
    number, epoch = integers(table["run"]), integers(table["epoch"])
    place = np.searchsorted(runs, number).clip(0, len(runs) - 1)
    if (runs[place] != number).any():
        raise ValueError(f"it has a row of run {number[runs[place] != number][0]}, which is not in {RUNS}")
    if epoch.min() < 1 or epoch.max() > len(epoch):  # before allocating an array of that size
        raise ValueError("an epoch is out of range")
    if len(np.unique(place * len(epoch) + epoch)) < len(epoch):
        raise ValueError("an epoch has two rows")
    curves = {}
    for name in table.columns.drop(["run", "epoch"]):
        curves[name] = np.full((len(runs), epoch.max()), np.nan, np.float32)
        curves[name][place, epoch - 1] = floats(table[name])
    return curves


def floats(column: Sequence[str]) -> np.ndarray:
    """Convert text to float32; an empty field becomes NaN."""
    with np.errstate(over="ignore"):
        return np.array([float(text or "nan") for text in column]).astype(np.float32)


def integers(column: Sequence[str]) -> np.ndarray:
    """Convert text to integers."""
    if strange := [text for text in column if len(text) > 18 or not text.removeprefix("-").isdecimal()]:
        raise ValueError(f"{strange[0][:40]!r} is no integer")
    return np.array([int(text) for text in column])


def truths(column: Sequence[str]) -> np.ndarray:
    """Convert text to truth values."""
    if strange := set(column) - {"True", "False"}:
        raise ValueError(f"{min(strange)[:40]!r} is neither True nor False")
    return np.array([text == "True" for text in column])


def _values(column: Sequence[str], dtype: str) -> np.ndarray:
    """Convert the text of a hyperparameter to the dtype that its column had."""
    kind = np.dtype(dtype).kind if dtype in np.sctypeDict else "O"
    if kind == "f":
        return floats(column) if dtype == "float32" else np.array([float(text or "nan") for text in column])
    if kind == "i":
        return integers(column)
    return truths(column) if kind == "b" else np.array(list(column), object)


def _damaged(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path} is damaged: {reason}")
