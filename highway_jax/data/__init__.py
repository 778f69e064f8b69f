"""Datasets in memory, the batches of an epoch, and what happens to images on their way to a network."""

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
    """Load a dataset by name: "digits", which is embedded, a .npz file, or a TFDS image-classification dataset.

    Args:
      name: the dataset; of TFDS as NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION; a file as `load_npz` has it.
      data_dir: where prepared TFDS datasets are, by default $TFDS_DATA_DIR or ~/tensorflow_datasets; or the file, by
        default the current directory.

    Raises:
      DataError: if it is unknown, not prepared, unreadable or unsuitable (see `checked`); the message is one line.
    """
    if name.endswith(SUFFIX):
        return load_npz(name, data_dir)
    return digits() if name == "digits" else load_tfds(name, data_dir)


def outline(name: str, data_dir: str | None = None) -> Dataset:
    """What `load` would return, in shapes and dtypes: the images and labels of a TFDS dataset are zeros.

    Nothing is read but the dataset's description, or a file. Arguments and errors are `load`'s.
    """
    if name.endswith(SUFFIX):
        return load_npz(name, data_dir)
    return digits() if name == "digits" else outline_tfds(name, data_dir)
