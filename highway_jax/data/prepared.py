"""Where a prepared TFDS dataset is, and that its description is data alone.

TFDS imports whatever Python class a description names. A dataset may come from a stranger, so all that is decided here
is decided before TFDS sees the folder.
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
# Where TFDS has all of its feature classes.
_FEATURE = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+", re.ASCII)
_CLASS_KEYS = "pythonClassName", "python_class_name"
_COUNT_KEYS = "numClasses", "num_classes"
MAX_CLASSES = 100_000


class Name(NamedTuple):
    """The parts of NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION; None for what is not given."""

    dataset: str
    config: str | None
    version: str | None


def parse_name(name: str) -> Name:
    """Take a TFDS name apart. TFDS has further forms, some of which import or download code: none is allowed.

    Raises:
      DataError: if it is of another form.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise unknown(name)
    return Name(*match.groups())


def data_folder(data_dir: str | None = None) -> Path:
    """The folder of all prepared datasets: the one given, or else $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      DataError: if it begins with ~ and there is no such home directory.
    """
    name = "data_dir" if data_dir else "$TFDS_DATA_DIR" if os.environ.get("TFDS_DATA_DIR") else "data_dir's default"
    path = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{name} is {path!r}, which begins with a home directory that does not exist") from error


def unknown(name: str) -> DataError:
    """What to raise of a dataset that does not exist."""
    return DataError(
        f"dataset {name!r} is unknown; allowed are 'digits' and the image-classification datasets of TensorFlow "
        "Datasets, such as 'mnist', 'cifar10' and 'cifar100', as NAME, NAME/CONFIG, NAME:VERSION or "
        "NAME/CONFIG:VERSION, or a .npz file"
    )


def find(name: str, data_dir: str | None = None) -> Path:
    """The folder of a prepared dataset, whose description names no code but that of TFDS, and no more than MAX_CLASSES.

    Args:
      name: as `parse_name` takes it. Without a version it is the latest that is there; without a config, where there
        are configs, the one that TFDS has noted as the default.
      data_dir: see `data_folder`.

    Raises:
      NotPreparedError: if TFDS knows it and it is not there.
      DataError: if it is unknown, or its description cannot be read, names other code or has more classes.
    """
    dataset, config, version = parse_name(name)
    home = data_folder(data_dir) / dataset
    folder = _latest(home / (config or _default_config(name, home)), version)
    if not folder:
        import tensorflow_datasets as tfds  # imported here: it costs half a second

        there = sorted(path.name for path in home.glob("[!.]*/"))
        has = f", which has {', '.join(there)}" if there else ""
        if dataset in tfds.list_builders(with_community_datasets=False):
            raise NotPreparedError(
                f"dataset {name!r} is not prepared in {home}{has} ($TFDS_DATA_DIR says where else); "
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
        # A feature of the dataset may itself be called "type"; it is a dict.
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
    """The folder of a version, of the highest for None."""
    found = [
        path.parent for path in folder.glob("*/dataset_info.json") if re.fullmatch(r"\d+(\.\d+){2}", path.parent.name)
    ]
    found = [path for path in found if version in (None, path.name)]
    return max(found, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _default_config(name: str, home: Path) -> str:
    """The config that TFDS noted as the default when it prepared one; "" for a dataset without configs."""
    noted = _read_json(name, home / ".config" / "metadata.json")
    config = noted.get("default_config_name") if isinstance(noted, dict) else None
    return config if isinstance(config, str) and re.fullmatch(_CONFIG, config, re.ASCII) else ""


def _read_json(name: str, file: Path) -> Any:
    """A file's contents, None where there is no file."""
    try:
        return json.loads(file.read_text("utf-8")) if file.exists() else None
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(
            f"dataset {name!r} in {file.parent} cannot be read: {file.name}: {first_line(error)}"
        ) from error


def _at_most(value: Any, most: int) -> bool:
    """Whether a number, which JSON may have as text, is at most so large; what is no number TFDS refuses."""
    try:
        return float(value) <= most
    except OverflowError:
        return False
    except (TypeError, ValueError):
        return True


def _entries(content: Any) -> list[tuple[str, Any]]:
    """All keys and values of a description, in the forms of all versions of TFDS, however nested."""
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
