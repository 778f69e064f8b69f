"""Download a TFDS dataset and prepare it in a form that the programs read without TensorFlow.

    pip install 'highway-jax[prepare]'
    python -m experiments.prepare_data --dataset=mnist

--dataset=NAME     an image-classification dataset of TensorFlow Datasets; NAME/CONFIG:VERSION selects one of several
--data_dir=DIR     where it goes; by default $TFDS_DATA_DIR or ~/tensorflow_datasets
--overwrite        prepare it again and replace what is there

Preparing a dataset needs TensorFlow and a network, once. Reading it needs neither.
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
        raise UserError("--dataset is 'digits', which comes with scikit-learn and needs no preparation")
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
    """Download a dataset and write it as ArrayRecord files; `overwrite` removes earlier files first."""
    tfds = tensorflow_datasets()
    dataset, config, version = data.parse_name(name)
    folder = data.data_folder(data_dir)
    try:
        # `tfds.builder` may read the folder before the dataset's own code, and import what the folder names.
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
    """Fail within seconds if a dataset's server cannot be reached; TFDS alone would try for minutes."""
    for url in list(builder.url_infos)[:1]:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
        except urllib.error.HTTPError:
            pass  # the server answers, which is all that is asked
        except OSError as error:
            raise UserError(f"preparing {name!r} needs a network, but {url} cannot be reached: {error}") from error


if __name__ == "__main__":
    entry.run(main, __doc__)
