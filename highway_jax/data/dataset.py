"""Datasets, and the order in which an epoch uses their examples."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


class DataError(Exception):
    """A dataset cannot be loaded; the message is one line that says what is wrong."""


class NotPreparedError(DataError):
    """A TFDS dataset has not been downloaded and prepared yet."""


Split = dict[str, Array]
"""Examples: `x`, images as stored, (n, height, width, channels) uint8 or uint16, and `y`, labels, (n,) int32."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification dataset in memory; `checked` documents the requirements for images.

    Attributes:
      name: the name of the dataset.
      train: the training split: `x` and `y`, as NumPy arrays until they are put on a device.
      test: the test split.
      num_classes: the number of classes.
      max_value: the largest possible value of a pixel, at most that of the dtype; None for data that is not to be
        scaled.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    max_value: int | None = 255


def md5(split: Split) -> str:
    """The MD5 of the contents of a split, by which copies of a split are compared.

    It covers the bytes of the images, then those of the labels, in the order in which they are stored. The dtype and
    the shape of an array precede its bytes, unless it has the usual form: square uint8 images with 1 or 3 channels, or
    int32 labels with one axis. Splits with the same bytes in different shapes therefore have different values.

    Args:
      split: the images `x` and the labels `y`.

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
    """Divide a split into the batches of an epoch, in a random order.

    Args:
      split: n examples, as a tree of arrays with a common leading axis.
      key: the random key for the order; derive it from the seed of the data and the epoch.
      batch_size: the number of examples in a batch. The remaining n % batch_size examples are left out.

    Returns:
      A tree of the same structure, whose leaves have leading axes (steps, batch_size).

    Raises:
      ValueError: if a batch is larger than the split.

    Example:
      ```python
      batches = data.shuffled_batches(dataset.train, jax.random.fold_in(key, epoch), batch_size=100)
      ```
    """
    order = batch_order(jax.tree.leaves(split)[0].shape[0], key, batch_size)
    return jax.tree.map(lambda leaf: leaf[order], split)


def batch_order(examples: int, key: jax.Array, batch_size: int) -> jax.Array:
    """Return the indices of the examples in the batches of `shuffled_batches`.

    Args:
      examples: the number of examples.
      key: as for `shuffled_batches`.
      batch_size: as for `shuffled_batches`.

    Returns:
      The indices, (steps, batch_size) int32.

    Raises:
      ValueError: if a batch is larger than the number of examples.
    """
    if not 1 <= batch_size <= examples:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 to {examples}, the number of examples")
    steps = examples // batch_size
    # With `examples` instead of an array, the permutation would be int64 if x64 is enabled.
    order = jax.random.permutation(key, jnp.arange(examples, dtype=jnp.int32))
    return order[: steps * batch_size].reshape(steps, batch_size)
