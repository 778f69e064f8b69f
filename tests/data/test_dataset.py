import hashlib
import io
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from highway_jax import data
from highway_jax.data import shuffled_batches
from tests.tfds_files import CIFAR100, MNIST, encoded, write_tfds

PREPARED = Path(os.environ.get("TFDS_DATA_DIR", Path(__file__).parents[3] / "shared/tfds"))
needs_mnist = pytest.mark.skipif(
    not (PREPARED / "mnist").is_dir(), reason="needs prepared MNIST in $TFDS_DATA_DIR; reading real TFDS data untested"
)


def test_digits_are_the_real_ones_split_once_and_for_all():
    dataset = data.load("digits")
    assert dataset.train["x"].shape == (1500, 8, 8, 1)
    assert dataset.test["x"].shape == (297, 8, 8, 1)
    assert dataset.train["x"].max() == dataset.max_value == 16
    everything = np.concatenate([dataset.train["x"], dataset.test["x"]])
    assert len(np.unique(everything.reshape(1797, -1), axis=0)) == 1797
    assert np.bincount(np.concatenate([dataset.train["y"], dataset.test["y"]])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    # A changed shuffle would silently change every result.
    assert hashlib.md5(dataset.test["y"].tobytes()).hexdigest() == "95c5a2cdad09f319b07673eee68ce001"


@settings(max_examples=10)
@given(sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)).map(sorted), seed=st.integers(0, 2**31))
def test_an_epoch_shows_every_example_at_most_once_with_its_label(sizes, seed):
    batch_size, n = sizes
    split = {"x": np.arange(n).reshape(n, 1), "y": 10 * np.arange(n)}
    batches = shuffled_batches(split, jax.random.key(seed), batch_size)
    assert batches["y"].shape == (n // batch_size, batch_size)
    seen = np.asarray(batches["x"]).ravel()
    assert len(set(seen.tolist())) == len(seen)
    np.testing.assert_array_equal(np.asarray(batches["y"]).ravel(), 10 * seen)


def test_every_epoch_has_an_order_of_its_own():
    split = {"x": np.zeros((40, 1)), "y": np.arange(40)}
    orders = [np.ravel(shuffled_batches(split, jax.random.key(seed), 10)["y"]) for seed in (0, 1)]
    for other in (orders[1], np.arange(40)):
        assert (orders[0] != other).any()


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size is 5; it must be 1 to 4"):
        shuffled_batches({"x": np.zeros((4, 1)), "y": np.zeros(4)}, jax.random.key(0), 5)


def test_pixels_are_rescaled_to_the_unit_interval():
    np.testing.assert_allclose(data.rescale(np.array([0, 51, 255], np.uint8), 255), [0, 0.2, 1])


@needs_mnist
def test_mnist_is_read_to_the_last_bit_without_tensorflow():
    dataset = data.load("mnist", str(PREPARED))
    assert (dataset.train["x"].shape, dataset.num_classes) == ((60000, 28, 28, 1), 10)
    # The original files' sums: TFDS stores the images in an order of its own.
    assert dataset.train["x"].sum(dtype=np.int64) == round(33.318421449829934 * 60000 * 784)
    assert dataset.test["x"].sum(dtype=np.int64) == round(33.791224489795916 * 10000 * 784)
    assert np.bincount(dataset.test["y"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.md5(dataset.train) == "a54d59b5fad9aa93751c3618b95cad3d"  # as in results/
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


def test_a_home_that_does_not_exist_is_one_line(monkeypatch):
    place = "~no-such-user/data"
    for ask in data.load, data.outline:
        with pytest.raises(
            data.DataError, match=r"^data_dir is '~no-such-user/data', which begins with a home .* not exist$"
        ):
            ask("mnist", place)
    monkeypatch.setenv("TFDS_DATA_DIR", place)
    for ask in data.load, data.outline:
        with pytest.raises(data.DataError, match=r"^\$TFDS_DATA_DIR is '~no-such-user/data', which begins"):
            ask("mnist")


def assert_outlined(name, place, there):
    """The description alone gives the dataset's shapes, dtypes and ranges."""
    outline = data.outline(name, place)
    assert (outline.num_classes, outline.max_value) == (there.num_classes, there.max_value)
    for described, found in (outline.train, there.train), (outline.test, there.test):
        for ours, theirs in (described["x"], found["x"]), (described["y"], found["y"]):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


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
            np.testing.assert_array_equal(split["x"], images)
            np.testing.assert_array_equal(split["y"], labels)
        assert (there.num_classes, there.max_value, split["y"].dtype) == (classes["label"], 255, np.int32)
        assert_outlined(name, place, there)


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


RNG = np.random.default_rng(0)
GREY, RGB, DEEP = (8, 6, 1), (8, 6, 3), RNG.integers(0, 1 << 16, (20, 8, 6, 1), np.uint16)
LABELS = np.arange(20) % 10


def pixels(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def write(folder, train=None, labels=LABELS, test=None, test_labels=LABELS[:5], classes=10, **description):
    """A dataset called mine, of 20 and 5 examples; images are those of `train` and the first of them."""
    train = pixels(20, 8, 6, 1) if train is None else train
    test = train[:5] if test is None else test
    splits = (train, labels), (test, test_labels)
    return write_tfds(folder, ("mine", "1.0.0", {"label": classes}), *splits, **description)


def test_images_of_16_bits_range_to_65535(tmp_path):
    write(tmp_path, DEEP)
    dataset = data.load("mine", str(tmp_path))
    assert dataset.train["x"].dtype == np.uint16
    np.testing.assert_array_equal(dataset.train["x"], DEEP)
    np.testing.assert_allclose(data.rescale(dataset.train["x"], dataset.max_value), DEEP / 65535, rtol=1e-6)
    assert_outlined("mine", str(tmp_path), dataset)


BITS = RNG.integers(0, 2, (8, 6)).astype(bool)
PALETTE, INDICES = RNG.integers(0, 256, (16, 3), np.uint8), RNG.integers(0, 16, (8, 6), np.uint8)
INDEXED = Image.fromarray(INDICES, "P")
INDEXED.putpalette(PALETTE.tobytes())
ONE_BIT, TWO_CHANNELS, FOUR_CHANNELS = Image.fromarray(BITS), pixels(8, 6, 2), pixels(8, 6, 4)
PHOTO = encoded(pixels(8, 6, 3), "jpeg")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (encoded(INDEXED), PALETTE[INDICES]),
        (encoded(ONE_BIT), BITS[..., None] * 255),
        (encoded(ONE_BIT), np.repeat(BITS[..., None] * 255, 3, 2)),
        (encoded(TWO_CHANNELS), TWO_CHANNELS),
        (encoded(FOUR_CHANNELS), FOUR_CHANNELS),
        (encoded(FOUR_CHANNELS[..., :1]), np.repeat(FOUR_CHANNELS[..., :1], 3, 2)),
        (PHOTO, np.asarray(Image.open(io.BytesIO(PHOTO)))),
    ],
    ids=["palette", "1 bit", "1 bit as colour", "grey and alpha", "colour and alpha", "grey as colour", "jpeg"],
)
def test_an_image_has_the_channels_of_the_description(image, expected, tmp_path):
    write(tmp_path, [image] * 20, shape=expected.shape, dtype="uint8")
    dataset = data.load("mine", str(tmp_path))
    np.testing.assert_array_equal(dataset.train["x"], np.broadcast_to(expected, (20, *expected.shape)))
    assert_outlined("mine", str(tmp_path), dataset)


def some(value, among=LABELS, dtype=None):
    """Labels or images of which the fourth is something else."""
    changed = list(among) if dtype is None else among.astype(dtype)
    changed[3] = value
    return changed


GREYS = list(map(encoded, pixels(20, *GREY)))
ONE_GREY = {"shape": GREY, "dtype": "uint8"}
ONE_COLOUR = {"shape": RGB, "dtype": "uint8"}
ANY_SIZE = {"shape": (None, None, 1), "dtype": "uint8"}
SEVERAL = {"train": some(encoded(pixels(8, 7, 1)), GREYS), **ANY_SIZE}


@pytest.mark.parametrize(
    ("changes", "message", "said"),  # said: whether the description alone says so
    [
        ({"dtype": "float32"}, r"images of float32, shape \(8, 6, 1\); they must be .*uint8 .* or uint16 with 1", True),
        ({"train": pixels(20, *RGB), "dtype": "uint16"}, r"images of uint16, shape \(8, 6, 3\); they must be", True),
        ({"shape": (2, 8, 6, 1)}, r"shape \(2, 8, 6, 1\); they must be \(height, width, channels\)", True),
        ({"shape": (8, 6, 0)}, r"shape \(8, 6, 0\); they must be", True),
        ({"classes": 1, "labels": LABELS * 0, "test_labels": LABELS[:5] * 0}, "has 1 classes; .* at least 2", True),
        ({"classes": 0}, "has 0 classes", True),
        ({"classes": 100_001}, "has '100001' classes; it must have at most 100,000", True),
        ({"classes": 10**11}, "has '100000000000' classes; it must have at most 100,000", True),
        ({"classes": -5}, "'mine'", True),
        ({"counts": ([-5], [5])}, "split 'train': .* says -5 examples; it must be 0 to 2,147,483,647", True),
        ({"counts": ([-5, 25], [5])}, "split 'train': .* says -5 examples; it must be 0 to 2,147,483,647", True),
        ({"counts": ([2**31], [5])}, "split 'train': .* says 2147483648 examples", True),
        ({"counts": ([2**63 - 1, 2**63 - 1], [5])}, "split 'train': .* says 18446744073709551614 examples", True),
        ({"counts": ([2**31 - 1], [5])}, "split 'train'", False),
        ({"counts": ([2**31 - 1], [5]), "shape": (2**15 - 1, 2**15 - 1, 4), "dtype": "uint8"}, "split 'train'", False),
        ({"shape": (2**40, 6, 1)}, r"images of shape \(1099511627776, 6, 1\); each size must be 1 to 32,767", True),
        ({"shape": (0, 6, 1)}, r"images of shape \(0, 6, 1\); each size must be", True),
        ({"test": pixels(0, *GREY), "test_labels": []}, "split 'test': there are no examples", True),
        ({"labels": LABELS * 0 + 7}, "split 'train': every label is 7; there must be at least two classes", False),
        ({"labels": some(-1)}, r"split 'train': a label is -1 \(-1 means .* no label\); labels must be 0 to 9", False),
        ({"test_labels": some(10, LABELS[:5])}, "split 'test': a label is 10; labels must be 0 to 9", False),
        ({"labels": some(1 << 40)}, "split 'train': a label is 1099511627776; labels must be 0 to 9", False),
        ({"labels": some(None)}, "split 'train': example 3 has 1 images and 0 labels; it must have one each", False),
        ({"test": pixels(5, 8, 7, 1)}, "split 'test': image 0 is 8x7; the dataset's description says 8x6", False),
        ({"test": pixels(5, 8, 7, 1), **ANY_SIZE}, "split 'test': images are uint8 8x7x1; .* like .* 8x6x1", False),
        (SEVERAL, "split 'train': images are of several sizes, such as .*; they must be of one", False),
        (
            {"train": pixels(20, *GREY) // 255},
            "split 'train': the largest pixel is 1; .* up to max_value, 255",
            False,
        ),
        ({"train": DEEP, "dtype": "uint8"}, r"image 0 is I(;16)?; the dataset's description says L, uint8", False),
        ({"dtype": "uint16"}, "image 0 is L; the dataset's description says I;16, uint16", False),
        ({"train": some(encoded(pixels(*RGB)), GREYS), **ONE_GREY}, "image 3 is RGB; .* says L, uint8", False),
        ({"train": some(encoded(TWO_CHANNELS), GREYS), **ONE_GREY}, "image 3 is LA; .* says L", False),
        ({"train": some(encoded(INDEXED), GREYS), **ONE_GREY}, "image 3 is P; .* says L", False),
        ({"train": some(encoded(FOUR_CHANNELS), GREYS), **ONE_COLOUR}, "image 3 is RGBA; .* says RGB", False),
        (
            {"train": some(encoded(INDEXED, transparency=3), GREYS), **ONE_COLOUR},
            "image 3 is P with transparency; .* says RGB",
            False,
        ),
        (
            {"train": some(encoded(Image.fromarray(FOUR_CHANNELS, "CMYK"), "jpeg"), GREYS), **ONE_COLOUR},
            "image 3 is CMYK; .* says RGB",
            False,
        ),
        ({"train": some(encoded(INDEXED, "gif"), GREYS), **ONE_COLOUR}, "image 3 is neither PNG nor JPEG", False),
        ({"train": some(GREYS[3][:70], GREYS), **ONE_GREY}, "cannot be read: split 'train': ", False),
        ({"counts": ([19], [5])}, "split 'train': its files hold 20 examples, its description says 19", False),
        ({"counts": ([20], [6])}, "split 'test': its files hold 5 examples, its description says 6", False),
        ({"names": ["a", "b", "c"]}, "has 10 classes, but 3 names in label.labels.txt", True),
    ],
)
def test_what_would_be_misread_is_refused_in_one_line(changes, message, said, tmp_path):
    changes = dict(changes)
    counts, names = changes.pop("counts", None), changes.pop("names", None)
    folder = write(tmp_path, **changes)
    if counts:
        info = json.loads((folder / "dataset_info.json").read_text())
        for split, count in zip(info["splits"], counts, strict=True):
            split["shardLengths"] = list(map(str, count))
        (folder / "dataset_info.json").write_text(json.dumps(info))
    if names:
        (folder / "label.labels.txt").write_text("\n".join(names))
    with pytest.raises(data.DataError, match=message) as refusal:
        data.load("mine", str(tmp_path))
    assert str(refusal.value).startswith("dataset 'mine'")
    assert "\n" not in str(refusal.value)
    if said or None in changes.get("shape", ()):
        with pytest.raises(data.DataError) as same:
            data.outline("mine", str(tmp_path))
        assert str(same.value) == str(refusal.value)
    else:
        assert data.outline("mine", str(tmp_path)).train["x"].shape[1:] == changes.get("shape", (8, 6, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"x": pixels(3, 8, 6), "y": np.arange(3)}}, r"'train': images are of shape \(3, 8, 6\)"),
        (
            {"train": {"x": pixels(3, *GREY) / 255, "y": np.arange(3)}},
            "'train': images are float64; they must be",
        ),
        ({"test": {"x": pixels(3, *GREY).astype(np.int8), "y": np.arange(3)}}, "'test': images are int8; they must be"),
        ({"train": {"x": DEEP.astype(">u2"), "y": LABELS}}, "'train': images are >u2; they must be"),
        ({"test": {"x": DEEP, "y": LABELS}}, "'test': images are uint16 8x6x1; .* those of split 'train', uint8 8x6x1"),
        ({"test": {"x": pixels(3, *RGB), "y": np.arange(3)}}, "'test': images are uint8 8x6x3; .* uint8 8x6x1"),
        (
            {"train": {"x": pixels(3, *GREY), "y": np.eye(3, dtype=int)}},
            r"int64 of shape \(3, 3\); .* \(3,\)",
        ),
        (
            {"train": {"x": pixels(3, *GREY), "y": np.arange(2)}},
            r"int64 of shape \(2,\); .*integers, \(3,\)",
        ),
        ({"train": {"x": pixels(3, *GREY), "y": np.arange(3.0)}}, "labels are float64"),
        ({"max_value": 16}, r"the largest pixel is \d+; it must be at most max_value, 16"),
        ({"max_value": 65535}, "max_value is 65535; for uint8 it must be 1 to 255"),
        ({"num_classes": None}, "has None classes"),
    ],
)
def test_arrays_of_ones_own_are_held_to_the_same(changes, message):
    fine = {"x": pixels(10, *GREY), "y": np.arange(10)}
    arguments = {"train": fine, "test": fine, "num_classes": 10}
    assert data.checked(data.Dataset("own", **arguments)).test["y"].dtype == np.int32
    with pytest.raises(data.DataError, match=message) as refusal:
        data.checked(data.Dataset("own", **{**arguments, **changes}))
    assert "dataset 'own'" in str(refusal.value)


def test_fingerprints_are_those_of_results_and_tell_contents_dtypes_and_shapes_apart():
    digits = data.load("digits")
    assert data.md5(digits.train) == "1598ad41b631628f19f35a1e75a18ad4"
    assert data.md5(digits.test) == "cba787eb1ec99e1225098b08e9a373f5"
    images, labels = pixels(20, *GREY) // 2, LABELS.astype(np.int32)
    others = [
        (images, labels),
        (images[::-1], labels),
        (images, labels[::-1]),
        (images.astype(np.int8), labels),
        (images.reshape(20, 8, 3, 2).view(np.uint16), labels),
        (images.reshape(20, -1), labels),
        (images.reshape(20, 6, 8, 1), labels),
        (images.reshape(20, 4, 4, 3), labels),
        (images[..., 0], labels),
        (images, labels.astype(np.uint32)),
        (images, labels[:, None]),
    ]
    assert len({data.md5(dict(zip("xy", arrays, strict=True))) for arrays in others}) == len(others)
    assert data.md5({"x": jax.device_put(images), "y": labels}) == data.md5({"x": images, "y": labels})


@pytest.mark.parametrize("x64", [False, True])
def test_random_bits_are_the_same_whatever_jaxs_default_dtypes(x64):
    with jax.enable_x64(x64):
        numbers = {"x": np.arange(10, dtype=np.int32), "y": np.arange(10, dtype=np.int32)}
        batches = shuffled_batches(numbers, jax.random.key(3), 5)
        assert np.asarray(batches["y"]).tolist() == [[0, 5, 6, 7, 4], [2, 1, 3, 9, 8]]
        images = np.arange(1, 49, dtype=np.uint8).reshape(3, 4, 4, 1)
        crops = data.random_crop(jax.random.key(1), images, 1)
        assert np.asarray(crops)[:, 0, :, 0].tolist() == [[2, 3, 4, 0], [22, 23, 24, 0], [33, 34, 35, 36]]
        mirrored = data.random_mirror(jax.random.key(1), np.tile(np.array([0, 1], np.uint8)[:, None], (8, 1, 1, 1)))
        assert np.asarray(mirrored)[:, 0, 0, 0].tolist() == [1, 0, 1, 1, 0, 0, 0, 0]
        outputs = data.rescale(images, 255), data.global_contrast_normalize(images)
        assert all(output.dtype == np.float32 for output in outputs)
