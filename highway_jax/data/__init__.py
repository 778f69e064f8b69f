"""Datasets in memory, the batches of an epoch, and the preprocessing and augmentation of images."""

from highway_jax.data.arrays import SUFFIX, from_arrays, load_npz
from highway_jax.data.augmentation import random_crop, random_mirror
from highway_jax.data.checks import checked
from highway_jax.data.dataset import (
    Array,
    DataError,
    Dataset,
    NotPreparedError,
    Split,
    batch_order,
    md5,
    shuffled_batches,
)
from highway_jax.data.digits import digits
from highway_jax.data.prepared import data_folder, parse_name
from highway_jax.data.preprocessing import global_contrast_normalize, mean_image, rescale
from highway_jax.data.tfds import load_tfds, outline_tfds

__all__ = [
    "SUFFIX",
    "Array",
    "DataError",
    "Dataset",
    "NotPreparedError",
    "Split",
    "batch_order",
    "checked",
    "data_folder",
    "digits",
    "from_arrays",
    "global_contrast_normalize",
    "load",
    "load_npz",
    "load_tfds",
    "md5",
    "mean_image",
    "outline",
    "outline_tfds",
    "parse_name",
    "random_crop",
    "random_mirror",
    "rescale",
    "shuffled_batches",
]


def load(name: str, data_dir: str | None = None) -> Dataset:
    """Load a dataset by name.

    Args:
      name: "digits", which is embedded; a `.npz` file (see `load_npz`); or a TFDS image-classification dataset as NAME,
        NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION.
      data_dir: the directory of prepared TFDS datasets, by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`; or the
        directory of the `.npz` file, by default the current one.

    Returns:
      The dataset.

    Raises:
      DataError: if it is unknown, not prepared, unreadable or unsuitable (see `checked`); the message is one line.

    Example:
      ```python
      dataset = data.load("digits")
      dataset.train["x"]  # (1500, 8, 8, 1) uint8
      ```
    """
    if name.endswith(SUFFIX):
        return load_npz(name, data_dir)
    return digits() if name == "digits" else load_tfds(name, data_dir)


def outline(name: str, data_dir: str | None = None) -> Dataset:
    """Load a dataset for its shapes and dtypes only: the images and labels of a TFDS dataset are zeros.

    Only the description of a TFDS dataset is read. Other datasets are loaded.

    Args:
      name: as for `load`.
      data_dir: as for `load`.

    Returns:
      The dataset.

    Raises:
      DataError: as for `load`, except for errors in the images and labels of a TFDS dataset.
    """
    if name.endswith(SUFFIX):
        return load_npz(name, data_dir)
    return digits() if name == "digits" else outline_tfds(name, data_dir)
