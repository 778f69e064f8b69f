"""Datasets from arrays in memory or in a .npz file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from highway_jax.data.checks import IMAGE_DTYPES, checked
from highway_jax.data.dataset import DataError, Dataset, Split
from highway_jax.files import first_line

SUFFIX = ".npz"
"""The ending by which `load` recognizes a file."""

HELD_OUT = 0.2  # the fraction of the examples that becomes the test set if there is none


def load_npz(name: str, data_dir: str | None = None) -> Dataset:
    """Load a dataset from a file that `numpy.savez` has written.

    Args:
      name: the name of the file, which ends in `.npz` and has no directory. The file has the arrays of `from_arrays`.
      data_dir: the directory of the file, by default the current one.

    Returns:
      The dataset.

    Raises:
      DataError: if the file cannot be read or its arrays are unsuitable; the message is one line.
    """
    path = Path(data_dir or ".", name)
    if Path(name).name != name:
        raise DataError(f"dataset {name!r} has a directory; it must be a file name; data_dir is its directory")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; it must be a file with the arrays x and y; data_dir is its directory"
        ) from error
    except Exception as error:  # zipfile and NumPy raise many types
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error
    return from_arrays(name, arrays, path)


def from_arrays(name: str, arrays: Mapping[str, Any], path: str | Path | None = None) -> Dataset:
    """Make a dataset from arrays.

    Without a test set, a random fifth of the examples is held out as one. The choice is always the same.

    Args:
      name: the name of the dataset.
      arrays: `x`, (n, ...) numbers, and `y`, (n,) integers from 0, and optionally `x_test` and `y_test`. Arrays
        (n, height, width, channels) of uint8 or uint16 are treated as images. All others are converted to float32 and
        not scaled.
      path: the file that they are from, to be named in errors.

    Returns:
      The dataset.

    Raises:
      DataError: if an array is missing or unsuitable; the message is one line that names it.

    Example:
      ```python
      dataset = data.from_arrays("mine", {"x": x, "y": y})
      ```
    """
    path = path or name
    for key, array in arrays.items():
        if isinstance(array, np.ma.MaskedArray):
            raise DataError(f"{path}: {key} is a masked array; filled(...) makes an ordinary one")
    arrays = {key: np.asarray(array) for key, array in arrays.items()}
    expected = {"x", "y"} | ({"x_test", "y_test"} if {"x_test", "y_test"} & arrays.keys() else set())
    if arrays.keys() != expected:
        raise DataError(f"{path} has arrays {', '.join(sorted(arrays))}; they must be {', '.join(sorted(expected))}")
    for key, array in arrays.items():
        _check(path, key, array, arrays["x"] if key.startswith("x") else arrays["y"])
    for suffix in ("", "_test") if "x_test" in arrays else ("",):
        if len(arrays[f"x{suffix}"]) != len(arrays[f"y{suffix}"]):
            sizes = len(arrays[f"x{suffix}"]), len(arrays[f"y{suffix}"])
            raise DataError(
                f"{path}: x{suffix} has {sizes[0]} examples and y{suffix} {sizes[1]}; both must have the same number"
            )
    train, test = _splits(arrays)
    if not len(test["y"]):
        raise DataError(f"{path} has {len(train['y'])} examples; without a test set there must be at least 5")
    num_classes = 1 + max(int(split["y"].max()) for split in (train, test))
    if num_classes < 2:
        raise DataError(f"{path}: y has only 0; there must be two classes or more")
    dtype = arrays["x"].dtype
    if dtype in IMAGE_DTYPES and arrays["x"].ndim == 4:
        return checked(Dataset(name, train, test, num_classes, int(np.iinfo(dtype).max)))
    train, test = ({"x": s["x"].astype(np.float32), "y": s["y"].astype(np.int32)} for s in (train, test))
    return Dataset(name, train, test, num_classes, max_value=None)


def _splits(arrays: dict[str, np.ndarray]) -> tuple[Split, Split]:
    if "x_test" in arrays:
        return {"x": arrays["x"], "y": arrays["y"]}, {"x": arrays["x_test"], "y": arrays["y_test"]}
    order = np.random.default_rng(0).permutation(len(arrays["y"]))
    rest, held_out = np.split(order, [len(order) - int(HELD_OUT * len(order))])
    return {name: arrays[name][rest] for name in "xy"}, {name: arrays[name][held_out] for name in "xy"}


def _check(path: str | Path, key: str, array: np.ndarray, like: np.ndarray) -> None:
    """Reject arrays that no network can be trained on."""
    if key.startswith("y"):
        fits = array.ndim == 1 and np.issubdtype(array.dtype, np.integer) and len(array) > 0
        fits = fits and bool(array.min() >= 0 and array.max() < 10**5)
        allowed = "(n,) integers from 0, the classes, fewer than 100,000"
    else:
        fits = array.ndim > 1 and array.dtype.kind in "biuf" and 0 not in array.shape
        if fits and array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                count = np.count_nonzero(~np.isfinite(array.astype(np.float32, copy=False)))
            if count:
                raise DataError(f"{path}: {key} has {count} numbers that are NaN, infinite or too large for float32")
        fits = fits and (array.dtype, array.shape[1:]) == (like.dtype, like.shape[1:])
        allowed = "(n, ...) integers, floating-point numbers or booleans of NumPy"
        if array is not like:
            allowed = f"(n, {', '.join(map(str, like.shape[1:]))}) numbers of {like.dtype}, as x"
    if not fits:
        ends = ""
        if key.startswith("y") and np.issubdtype(array.dtype, np.integer) and array.size:
            ends = f", from {array.min()} to {array.max()}"
        raise DataError(f"{path}: {key} is {array.dtype} of shape {array.shape}{ends}; it must be {allowed}")
