"""The requirements for images and labels, which every loader checks."""

import dataclasses
from typing import NoReturn

import numpy as np

from highway_jax.data.dataset import Array, DataError, Dataset

IMAGE_DTYPES = np.dtype(np.uint8), np.dtype(np.uint16)


def checked(dataset: Dataset, contents: bool = True) -> Dataset:
    """Check that a network can be trained on a dataset of images.

    Args:
      dataset: two splits of images, (n, height, width, channels) uint8 or uint16 from 0 to `max_value`, and labels,
        (n,) integers from 0 to num_classes - 1. The images of both splits must have the same dtype, size and number of
        channels.
      contents: whether to check pixels and labels in addition to shapes, dtypes and numbers of examples.

    Returns:
      The dataset with int32 labels.

    Raises:
      DataError: if a requirement is violated; the message is one line with the dataset, the split, what was found and
        what is allowed.
    """
    if not dataset.num_classes or dataset.num_classes < 2:
        raise DataError(f"dataset {dataset.name!r} has {dataset.num_classes} classes; it must have at least 2")
    first = dataset.train["x"]
    for name, split in ("train", dataset.train), ("test", dataset.test):
        images, labels = split["x"], split["y"]

        def refuse(found: str, name: str = name) -> NoReturn:
            raise DataError(f"dataset {dataset.name!r}, split {name!r}: {found}")

        if images.dtype not in IMAGE_DTYPES:
            refuse(f"images are {images.dtype}; they must be {' or '.join(map(str, IMAGE_DTYPES))}")
        if images.ndim != 4 or 0 in images.shape[1:]:
            refuse(f"images are of shape {images.shape}; it must be (n, height, width, channels)")
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            refuse(f"labels are {labels.dtype} of shape {labels.shape}; they must be integers, ({len(images)},)")
        if not len(images):
            refuse("there are no examples; there must be at least one")
        if (images.dtype, images.shape[1:]) != (first.dtype, first.shape[1:]):
            refuse(f"images are {_kind(images)}; they must be like those of split 'train', {_kind(first)}")
        if dataset.max_value is None or not 1 <= dataset.max_value <= np.iinfo(images.dtype).max:
            refuse(f"max_value is {dataset.max_value}; for {images.dtype} it must be 1 to {np.iinfo(images.dtype).max}")
        if not contents:
            continue
        if (largest := int(images.max())) > dataset.max_value:
            refuse(f"the largest pixel is {largest}; it must be at most max_value, {dataset.max_value}")
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= dataset.num_classes:
            wrong = lowest if lowest < 0 else highest
            unlabeled = " (-1 means that there is no label)" if wrong == -1 else ""
            refuse(f"a label is {wrong}{unlabeled}; labels must be 0 to {dataset.num_classes - 1}")
        if name == "train" and lowest == highest:
            refuse(f"every label is {lowest}; there must be at least two classes to tell apart")
        if name == "train" and largest <= 1 < dataset.max_value:
            refuse(f"the largest pixel is {largest}; pixels must range up to max_value, {dataset.max_value}")
    train, test = (
        {"x": split["x"], "y": np.asarray(split["y"]).astype(np.int32, copy=False)}
        for split in (dataset.train, dataset.test)
    )
    return dataclasses.replace(dataset, train=train, test=test)


def _kind(images: Array) -> str:
    return f"{images.dtype} {'x'.join(map(str, images.shape[1:]))}"
