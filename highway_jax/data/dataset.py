"""What a dataset is, and how an epoch goes through it."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


class DataError(Exception):
    """A dataset cannot be had; the message is one line that says what to do."""


class NotPreparedError(DataError):
    """A TFDS dataset has not been downloaded and prepared yet."""


# Examples: `x`, images as stored, (n, height, width, channels) uint8 or uint16, and `y`, labels, (n,) int32.
Split = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image-classification dataset in memory; `checked` says what it must be.

    Attributes:
      name: its name.
      train, test: the two splits, NumPy arrays until they are put on a device.
      num_classes: number of classes.
      max_value: the largest value a pixel can have: that of the dtype, or less; None for what is not scaled.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    max_value: int | None = 255


def md5(split: Split) -> str:
    """The fingerprint by which two copies of a split are compared: the MD5 of its contents in the order stored.

    It covers the images' bytes, then the labels'. Before the bytes of an array that is not of the usual kind (square
    uint8 images of 1 or 3 channels, int32 labels of one axis) come its dtype and shape. So no two splits that differ
    have the same value, those with the same bytes in another shape included.

    Returns:
      32 hexadecimal digits.
    """
    digest = hashlib.md5(usedforsecurity=False)
    images, labels = np.asarray(split["x"]), np.asarray(split["y"])
    square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] in (1, 3)
    plain = labels.ndim == 1 and labels.dtype.str == "<i4"
    for array, usual in (images, square and images.dtype == np.uint8), (labels, plain):
        if not usual:
            digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def shuffled_batches(split: Any, key: jax.Array, batch_size: int) -> Any:
    """An epoch's batches in a random order.

    Args:
      split: n examples: any tree of arrays with one leading axis.
      key: decides the order; derive it from the data's seed and the epoch.
      batch_size: examples per batch. The n % batch_size examples left over sit this epoch out.

    Returns:
      Such a tree, whose leaves have leading axes (steps, batch_size).

    Raises:
      ValueError: if the batch is larger than the split.
    """
    order = batch_order(jax.tree.leaves(split)[0].shape[0], key, batch_size)
    return jax.tree.map(lambda leaf: leaf[order], split)


def batch_order(examples: int, key: jax.Array, batch_size: int) -> jax.Array:
    """Which examples the batches of `shuffled_batches` have: (steps, batch_size) int32.

    Args:
      examples: how many there are.
      key, batch_size: as for `shuffled_batches`.

    Raises:
      ValueError: if the batch is larger than that.
    """
    if not 1 <= batch_size <= examples:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 to {examples}, the number of examples")
    steps = examples // batch_size
    # of int64 where x64 is on, if `examples` were given
    order = jax.random.permutation(key, jnp.arange(examples, dtype=jnp.int32))
    return order[: steps * batch_size].reshape(steps, batch_size)
