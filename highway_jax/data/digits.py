"""The embedded dataset: scikit-learn's copy of the UCI handwritten digits. No download."""

import numpy as np

from highway_jax.data.checks import checked
from highway_jax.data.dataset import Dataset

TRAIN_SIZE = 1500


def digits() -> Dataset:
    """1,797 real 8x8 digits of 17 grey levels: 1,500 for training and 297 for testing, by a fixed shuffle."""
    # Imported here: scikit-learn takes a second to import, and is needed for nothing else.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.RandomState(0).permutation(len(bunch.target))
    images = bunch.images[order, :, :, None].astype(np.uint8)
    labels = bunch.target[order].astype(np.int32)
    train, test = slice(None, TRAIN_SIZE), slice(TRAIN_SIZE, None)
    return checked(
        Dataset(
            name="digits",
            train={"x": images[train], "y": labels[train]},
            test={"x": images[test], "y": labels[test]},
            num_classes=10,
            max_value=16,
        )
    )
