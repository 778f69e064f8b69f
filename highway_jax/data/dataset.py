"""What a dataset is, and how an epoch goes through it."""

import dataclasses
import hashlib

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray


class DataError(Exception):
    """A dataset cannot be had; the message is one line that says what to do."""


class NotPreparedError(DataError):
    """A TFDS dataset has not been downloaded and prepared yet."""


@struct.dataclass
class Split:
    """Images and their labels; a batch is a Split too.

    Attributes:
      images: (n, height, width, channels), as stored, usually uint8.
      labels: (n,) int32.
    """

    images: Array
    labels: Array


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image-classification dataset in memory.

    Attributes:
      name: its name.
      train, test: the two splits, NumPy arrays until they are put on a device.
      num_classes: number of classes.
      max_value: the largest value a pixel can have.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    max_value: int = 255


def md5(split: Split) -> str:
    """What tells versions of a split apart: the MD5 of its images' bytes, then its labels', in the order stored."""
    digest = hashlib.md5(usedforsecurity=False)
    for array in (split.images, split.labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def shuffled_batches(split: Split, key: jax.Array, batch_size: int) -> Split:
    """An epoch's batches in a random order.

    Args:
      split: n examples.
      key: decides the order; derive it from the data's seed and the epoch.
      batch_size: examples per batch. The n % batch_size examples left over sit this epoch out.

    Returns:
      A Split whose leaves have leading axes (steps, batch_size).

    Raises:
      ValueError: if the batch is larger than the split.
    """
    n = split.labels.shape[0]
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 to {n}, the number of examples")
    steps = n // batch_size
    order = jax.random.permutation(key, n)[: steps * batch_size].reshape(steps, batch_size)
    return jax.tree.map(lambda leaf: leaf[order], split)
