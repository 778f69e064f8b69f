import hashlib
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from highway_jax import data
from highway_jax.data import Split, shuffled_batches
from tests.tfds_files import CIFAR100, MNIST, write_tfds

PREPARED = Path(os.environ.get("TFDS_DATA_DIR", Path(__file__).parents[2] / "shared/tfds"))
needs_mnist = pytest.mark.skipif(
    not (PREPARED / "mnist").is_dir(), reason="needs prepared MNIST in $TFDS_DATA_DIR; reading real TFDS data untested"
)


def test_digits_are_the_real_ones_split_once_and_for_all():
    dataset = data.load("digits")
    assert dataset.train.images.shape == (1500, 8, 8, 1)
    assert dataset.test.images.shape == (297, 8, 8, 1)
    assert dataset.train.images.max() == dataset.max_value == 16
    everything = np.concatenate([dataset.train.images, dataset.test.images])
    assert len(np.unique(everything.reshape(1797, -1), axis=0)) == 1797
    assert np.bincount(np.concatenate([dataset.train.labels, dataset.test.labels])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    # A changed shuffle would silently change every result.
    assert hashlib.md5(dataset.test.labels.tobytes()).hexdigest() == "95c5a2cdad09f319b07673eee68ce001"


@settings(max_examples=25)
@given(sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)).map(sorted), seed=st.integers(0, 2**31))
def test_an_epoch_shows_every_example_at_most_once_with_its_label(sizes, seed):
    batch_size, n = sizes
    split = Split(np.arange(n).reshape(n, 1), 10 * np.arange(n))
    batches = shuffled_batches(split, jax.random.key(seed), batch_size)
    assert batches.labels.shape == (n // batch_size, batch_size)
    seen = np.asarray(batches.images).ravel()
    assert len(set(seen.tolist())) == len(seen)
    np.testing.assert_array_equal(np.asarray(batches.labels).ravel(), 10 * seen)


def test_every_epoch_has_an_order_of_its_own():
    split = Split(np.zeros((40, 1)), np.arange(40))
    orders = [np.ravel(shuffled_batches(split, jax.random.key(seed), 10).labels) for seed in (0, 1)]
    for other in (orders[1], np.arange(40)):
        assert (orders[0] != other).any()


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size is 5; it must be 1 to 4"):
        shuffled_batches(Split(np.zeros((4, 1)), np.zeros(4)), jax.random.key(0), 5)


def test_pixels_are_rescaled_to_the_unit_interval():
    np.testing.assert_allclose(data.rescale(np.array([0, 51, 255], np.uint8), 255), [0, 0.2, 1])


@needs_mnist
def test_mnist_is_read_to_the_last_bit_without_tensorflow():
    dataset = data.load("mnist", str(PREPARED))
    assert (dataset.train.images.shape, dataset.num_classes) == ((60000, 28, 28, 1), 10)
    # The original files' sums: TFDS stores the images in an order of its own.
    assert dataset.train.images.sum(dtype=np.int64) == round(33.318421449829934 * 60000 * 784)
    assert dataset.test.images.sum(dtype=np.int64) == round(33.791224489795916 * 10000 * 784)
    assert np.bincount(dataset.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nonesuch", data.DataError, "'nonesuch' is unknown; allowed are 'digits' and.*'mnist'"),
        ("not a name!", data.DataError, "'not a name!' is unknown"),
        (
            "mnist",
            data.NotPreparedError,
            "'mnist' is not prepared in .*; prepare it with: python -m",
        ),
        ("cifar100", data.NotPreparedError, "prepare_data --dataset=cifar100 --data_dir="),
    ],
)
def test_a_dataset_that_cannot_be_had_is_one_line_in_no_time(tmp_path, name, error, message):
    with pytest.raises(error, match=message) as caught:
        data.load(name, str(tmp_path))
    assert "\n" not in str(caught.value)


def fake_mnist():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (n, 28, 28, 1), dtype=np.uint8), rng.integers(0, 10, n)) for n in (20, 5)]


def fake_cifar100():
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.permutation(100)[:n], rng.integers(0, 20, n))
        for n in (20, 5)
    ]


@pytest.mark.parametrize(("dataset", "fake"), [(MNIST, fake_mnist), (CIFAR100, fake_cifar100)])
def test_a_prepared_dataset_is_read_as_it_was_written(dataset, fake, tmp_path, monkeypatch):
    train, test = fake()
    write_tfds(tmp_path / "data", dataset, train, test)
    monkeypatch.setenv("HOME", str(tmp_path))
    name, _, classes = dataset
    for place in (str(tmp_path / "data"), "~/data"):
        there = data.load(name, place)
        for split, (images, labels, *_) in (there.train, train), (there.test, test):
            np.testing.assert_array_equal(split.images, images)
            np.testing.assert_array_equal(split.labels, labels)
        assert (there.num_classes, there.max_value, split.labels.dtype) == (classes["label"], 255, np.int32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"fileFormat": "tfrecord"}, "stored as tfrecord, which only TensorFlow can read.* --overwrite"),
        ({"splits": "train"}, "'mnist' has no 'test' split; it has train"),
        ({"cut": "mnist-train"}, "'mnist' in .* cannot be read"),
        ({"cut": "dataset_info"}, "'mnist' .*cannot be "),
    ],
)
def test_an_unusable_dataset_is_one_line(tmp_path, damage, message):
    train, test = fake_mnist()
    info = {key: value for key, value in damage.items() if key == "fileFormat"}
    directory = write_tfds(tmp_path, MNIST, train, test, **info)
    if "splits" in damage:
        written = json.loads((directory / "dataset_info.json").read_text())
        written["splits"] = written["splits"][:1]
        (directory / "dataset_info.json").write_text(json.dumps(written))
    for file in directory.glob(f"{damage.get('cut', 'nothing')}*"):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(data.DataError, match=message) as caught:
        data.load("mnist", str(tmp_path))
    assert "\n" not in str(caught.value)
