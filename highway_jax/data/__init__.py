"""Datasets in memory, and the batches of an epoch."""

from highway_jax.data.dataset import Array, DataError, Dataset, NotPreparedError, Split, rescale, shuffled_batches
from highway_jax.data.digits import digits
from highway_jax.data.tfds import first_line, load_tfds

__all__ = [
    "Array",
    "DataError",
    "Dataset",
    "NotPreparedError",
    "Split",
    "digits",
    "first_line",
    "load",
    "load_tfds",
    "rescale",
    "shuffled_batches",
]


def load(name: str, data_dir: str | None = None) -> Dataset:
    """Load a dataset by name: "digits", which is embedded, or a TFDS image-classification dataset.

    Args:
      name: the dataset.
      data_dir: where prepared TFDS datasets are; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      DataError: if it is unknown, not prepared, unreadable or unsuitable; the message is one line.
    """
    return digits() if name == "digits" else load_tfds(name, data_dir)
