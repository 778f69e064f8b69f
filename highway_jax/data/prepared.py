"""Finding prepared TFDS datasets, and checking that their descriptions name no foreign code.

TFDS imports any Python class that a description names. Since a dataset may come from an untrusted source, its
description is checked before TFDS opens the folder.
"""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from highway_jax.data.dataset import DataError, NotPreparedError
from highway_jax.files import first_line

_CONFIG = r"\w[\w.+-]*"
_NAME = re.compile(rf"([a-z]\w*)(?:/({_CONFIG}))?(?::(\d+\.\d+\.\d+))?", re.ASCII)
# The module that contains all feature classes of TFDS.
_FEATURE = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+", re.ASCII)
_CLASS_KEYS = "pythonClassName", "python_class_name"
_COUNT_KEYS = "numClasses", "num_classes"
MAX_CLASSES = 100_000


class Name(NamedTuple):
    """The parts of NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION; None for parts that are not given.

    Attributes:
      dataset: the name of the dataset.
      config: the name of the configuration.
      version: the version, such as "3.0.1".
    """

    dataset: str
    config: str | None
    version: str | None


def parse_name(name: str) -> Name:
    """Split the name of a TFDS dataset into its parts.

    Other forms that TFDS accepts are rejected, since some of them import or download code.

    Args:
      name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION.

    Returns:
      The parts of the name.

    Raises:
      DataError: if the name has another form.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise unknown(name)
    return Name(*match.groups())


def data_folder(data_dir: str | None = None) -> Path:
    """The folder of prepared TFDS datasets.

    Args:
      data_dir: the folder, by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
      The folder, with a leading `~` expanded.

    Raises:
      DataError: if it begins with the name of a home directory that does not exist.
    """
    name = "data_dir" if data_dir else "$TFDS_DATA_DIR" if os.environ.get("TFDS_DATA_DIR") else "data_dir's default"
    path = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{name} is {path!r}, which begins with a home directory that does not exist") from error


def unknown(name: str) -> DataError:
    """The error for a dataset that does not exist."""
    return DataError(
        f"dataset {name!r} is unknown; allowed are 'digits' and the image-classification datasets of TensorFlow "
        "Datasets, such as 'mnist', 'cifar10' and 'cifar100', as NAME, NAME/CONFIG, NAME:VERSION or "
        "NAME/CONFIG:VERSION, or a .npz file"
    )


def find(name: str, data_dir: str | None = None) -> Path:
    """Find the folder of a prepared dataset, and check its description.

    Args:
      name: a name as for `parse_name`. Without a version, the latest prepared one is found. Without a configuration, it
        is the default one as recorded by TFDS, if the dataset has configurations.
      data_dir: see `data_folder`.

    Returns:
      The folder. Its description names no classes outside of TFDS, and at most `MAX_CLASSES` classes of images.

    Raises:
      NotPreparedError: if TFDS knows the dataset but it has not been prepared.
      DataError: if the dataset is unknown, or its description cannot be read or violates these limits.
    """
    dataset, config, version = parse_name(name)
    home = data_folder(data_dir) / dataset
    folder = _latest(home / (config or _default_config(name, home)), version)
    if not folder:
        import tensorflow_datasets as tfds  # imported here, since it takes half a second

        there = sorted(path.name for path in home.glob("[!.]*/"))
        has = f", which has {', '.join(there)}" if there else ""
        if dataset in tfds.list_builders(with_community_datasets=False):
            raise NotPreparedError(
                f"dataset {name!r} is not prepared in {home}{has} (set $TFDS_DATA_DIR for another folder); "
                f"prepare it with: {prepare_command(name, data_dir)}"
            )
        raise DataError(f"dataset {name!r} is not in {home}{has}") if has else unknown(name)
    # TFDS reads features from either file.
    info, features = (_read_json(name, folder / file) for file in ("dataset_info.json", "features.json"))
    try:
        entries = _entries([info.get("features") if isinstance(info, dict) else None, features])
    except RecursionError as error:
        raise DataError(f"dataset {name!r} in {folder} cannot be read: its description is nested too deeply") from error
    for key, value in entries:
        # A feature of the dataset may itself be named "type"; its value is a dict.
        names_class = key in _CLASS_KEYS or (key == "type" and not isinstance(value, dict))
        if names_class and not (isinstance(value, str) and _FEATURE.fullmatch(value)):
            raise DataError(
                f"dataset {name!r} in {folder} names the class {value!r}, which TFDS would import; "
                "only classes in tensorflow_datasets.core.features are allowed"
            )
        if key in _COUNT_KEYS and not _at_most(value, MAX_CLASSES):
            raise DataError(
                f"dataset {name!r} in {folder} has {value!r} classes; it must have at most {MAX_CLASSES:,}, "
                "each of which TFDS gives a name"
            )
    return folder


def prepare_command(name: str, data_dir: str | None) -> str:
    """The command that prepares a dataset."""
    return f"python -m experiments.prepare_data --dataset={name}" + (f" --data_dir={data_dir}" if data_dir else "")


def _latest(folder: Path, version: str | None) -> Path | None:
    """The folder of a version, or of the latest one for None."""
    found = [
        path.parent for path in folder.glob("*/dataset_info.json") if re.fullmatch(r"\d+(\.\d+){2}", path.parent.name)
    ]
    found = [path for path in found if version in (None, path.name)]
    return max(found, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _default_config(name: str, home: Path) -> str:
    """The default configuration that TFDS recorded when it prepared one; "" if the dataset has no configurations."""
    noted = _read_json(name, home / ".config" / "metadata.json")
    config = noted.get("default_config_name") if isinstance(noted, dict) else None
    return config if isinstance(config, str) and re.fullmatch(_CONFIG, config, re.ASCII) else ""


def _read_json(name: str, file: Path) -> Any:
    """The contents of a JSON file, or None if there is no file."""
    try:
        return json.loads(file.read_text("utf-8")) if file.exists() else None
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(
            f"dataset {name!r} in {file.parent} cannot be read: {file.name}: {first_line(error)}"
        ) from error


def _at_most(value: Any, most: int) -> bool:
    """Whether a number, which may be given as text, is at most `most`. TFDS itself rejects other values."""
    try:
        return float(value) <= most
    except OverflowError:
        return False
    except (TypeError, ValueError):
        return True


def _entries(content: Any) -> list[tuple[str, Any]]:
    """All keys and values of a description, including nested ones, for the formats of all versions of TFDS."""
    found: list[tuple[str, Any]] = []
    rest = [content]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            found += value.items()
            rest += value.values()
        elif isinstance(value, list):
            rest += value
        elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):  # features may be written as a string of JSON
            with contextlib.suppress(ValueError):
                rest.append(json.loads(value))
    return found
