"""The embedded dataset, scikit-learn's copy of the UCI handwritten digits, which needs no download."""

from importlib.metadata import distribution

import numpy as np

from highway_jax.data.checks import checked
from highway_jax.data.dataset import Dataset

TRAIN_SIZE = 1500


def digits() -> Dataset:
    """Load 1,797 real handwritten digits: 1,500 for training and 297 for testing, in a fixed random order.

    The images are (n, 8, 8, 1) uint8, with values from 0 to 16.
    """
    # This is the file that `sklearn.datasets.load_digits` reads. Importing scikit-learn for it would take a second.
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), np.uint8, delimiter=",")
    order = np.random.RandomState(0).permutation(len(table))
    images = table[order, :-1].reshape(-1, 8, 8, 1)
    labels = table[order, -1].astype(np.int32)
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
