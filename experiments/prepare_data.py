"""Download and prepare a TFDS dataset in a form that every program here reads without TensorFlow.

    pip install 'highway-jax[prepare]'
    python -m experiments.prepare_data --dataset=mnist

--dataset=NAME     an image-classification dataset of TensorFlow Datasets; NAME/CONFIG and :VERSION may say which
--data_dir=DIR     where it goes; by default $TFDS_DATA_DIR or ~/tensorflow_datasets
--overwrite        prepare it again, in place of what is there

Preparing needs TensorFlow and a network, once; reading needs neither.
"""

import importlib.util
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from absl import flags

from experiments.app import command_line, entry
from experiments.app.errors import UserError
from highway_jax import data, files
from highway_jax.data.tfds import tensorflow_datasets


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("dataset", None, "name", flag_values=values)
    command_line.define_path("data_dir", None, "where it goes", values)
    flags.DEFINE_bool("overwrite", False, "prepare again", flag_values=values)
    command_line.parse_flags(argv, values)
    name, data_dir = values.dataset, values.data_dir
    if not name:
        raise UserError("--dataset is missing; it must be a TFDS dataset, such as mnist, cifar10 or cifar100")
    if name == "digits":
        raise UserError("--dataset is 'digits', which is embedded and needs no preparing")
    data.parse_name(name)
    if not values.overwrite:
        try:
            found = data.load_tfds(name, data_dir)
        except data.NotPreparedError:
            pass
        else:
            print(f"{name} is prepared: {len(found.train['y'])} training and {len(found.test['y'])} test images")
            return
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"preparing {name!r} needs TensorFlow, which is not installed; install it with: "
            "pip install 'highway-jax[prepare]'"
        )
    prepare(name, data_dir, values.overwrite)
    found = data.load_tfds(name, data_dir)
    print(f"{name} is ready: {len(found.train['y'])} training and {len(found.test['y'])} test images")


def prepare(name: str, data_dir: str | None, overwrite: bool) -> None:
    """Download a dataset and write it as ArrayRecord files; with `overwrite`, what is there goes first."""
    tfds = tensorflow_datasets()
    dataset, config, version = data.parse_name(name)
    folder = data.data_folder(data_dir)
    try:
        # Not `tfds.builder`: it may read the folder before the dataset's own code, and import what that names.
        cls = tfds.builder_cls(dataset)
        with tempfile.TemporaryDirectory() as empty:
            there = cls(config=config, version=version, data_dir=empty)
            place = folder / Path(there.data_path).relative_to(empty)
        check_network(name, there)
        if overwrite and place.exists():
            shutil.rmtree(place)
        cls(config=config, version=version, data_dir=folder, file_format="array_record").download_and_prepare()
    except (UserError, data.DataError):
        raise
    except Exception as error:
        raise UserError(f"{name!r} could not be prepared: {files.first_line(error)}") from error


def check_network(name: str, builder: Any) -> None:
    """Fail in seconds where a dataset's home cannot be reached; TFDS by itself tries for minutes."""
    for url in list(builder.url_infos)[:1]:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
        except urllib.error.HTTPError:
            pass  # an answer, if not the hoped-for one
        except OSError as error:
            raise UserError(f"preparing {name!r} needs a network, but {url} cannot be reached: {error}") from error


if __name__ == "__main__":
    entry.run(main, __doc__)
