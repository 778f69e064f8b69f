"""Datasets from .npz files, in the library and in programs."""

import json
import re

import numpy as np
import pytest

from experiments import analyze, search, train
from experiments.app import errors
from experiments.workdir import reading
from highway_jax import data
from highway_jax.data import DataError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5))
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
SMALL = (
    "--config=digits_depth10", "--config.depth=3", "--config.num_runs=2", "--config.epochs=2", "--config.batch_size=10",
    "--config.networks=highway",
)  # fmt: skip


def test_numbers_are_taken_as_they_are_and_a_fifth_is_held_out(tmp_path):
    np.savez(tmp_path / "mine.npz", x=X, y=Y)
    found, again = (data.load("mine.npz", str(tmp_path)) for _ in range(2))
    assert (len(found.train["y"]), len(found.test["y"]), found.num_classes, found.max_value) == (48, 12, 3, None)
    assert (found.train["x"].dtype, found.train["y"].dtype) == (np.float32, np.int32)
    rows = np.concatenate([found.train["x"], found.test["x"]])
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(np.float32(X), axis=0))
    np.testing.assert_array_equal(found.test["x"], again.test["x"])
    for split in found.train, found.test:
        np.testing.assert_array_equal((split["x"][:, 0] > 0).astype(int) + (split["x"][:, 1] > 0), split["y"])


def test_images_and_a_test_set_are_treated_as_those_of_other_datasets(tmp_path):
    images = RNG.integers(0, 256, (20, 6, 5, 1), np.uint8)
    np.savez(tmp_path / "mine.npz", x=images, y=Y[:20], x_test=images[:4], y_test=Y[:4])
    found = data.load("mine.npz", str(tmp_path))
    assert (found.max_value, found.train["x"].dtype, len(found.test["y"])) == (255, np.uint8, 4)
    np.testing.assert_array_equal(found.test["x"], images[:4])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "has arrays x; they must be x, y"),
        ({"x": X, "y": Y, "x_test": X}, "has arrays x, x_test, y; they must be x, x_test, y, y_test"),
        ({"x": X, "y": Y[:5]}, "x has 60 examples and y 5"),
        ({"x": X, "y": Y - 1}, r"y is int\d+ of shape \(60,\), from -1 to \d; it must be \(n,\) integers from 0"),
        ({"x": X, "y": Y / 2}, r"y is float64 of shape \(60,\); it must be \(n,\) integers from 0"),
        ({"x": X, "y": Y - 1}, "y is int64"),
        ({"x": X * np.nan, "y": Y}, "x has 300 numbers that are NaN, infinite or too large for float32"),
        ({"x": X * 1e300, "y": Y}, "x has 300 numbers that are NaN, infinite or too large for float32"),
        ({"x": X, "y": Y * 0}, "y has only 0; there must be two classes or more"),
        ({"x": X[:, 0], "y": Y}, r"x is float64 of shape \(60,\)"),
        ({"x": X.astype(object), "y": Y}, "cannot be read: ValueError: Object arrays cannot be loaded"),
        ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, r"x_test is float64 of shape \(60, 2\)"),
        ({"x": X[:4], "y": Y[:4]}, "has 4 examples; without a test set there must be at least 5"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_trained_on_is_named(arrays, message, tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        data.load("mine.npz", str(tmp_path))
    assert re.match(r".*mine\.npz", str(error.value))
    assert "\n" not in str(error.value)


def test_a_missing_damaged_or_far_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        data.load("none.npz", str(tmp_path))
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad\.npz cannot be read"):
        data.load("bad.npz", str(tmp_path))
    with pytest.raises(DataError, match="has a directory"):
        data.load(str(tmp_path / "bad.npz"))


def test_a_program_takes_a_path_and_a_workdir_none(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "mine.npz", x=X, y=Y)
    work = tmp_path / "work"
    search.main([*SMALL, f"--config.dataset={tmp_path}/mine.npz", f"--workdir={work}"])
    assert "mine.npz, depth 3: 48 training examples" in capsys.readouterr().out
    assert reading.load(work).config.dataset == "mine.npz"
    train.main(
        [
            f"--from_search={work}",
            "--network=highway",
            "--run=1",
            f"--config.data_dir={tmp_path}",
            f"--workdir={tmp_path}/again",
        ]
    )
    assert "the curve repeats the search's exactly" in capsys.readouterr().out
    analyze.main([f"--workdir={work}", f"--data_dir={tmp_path}"])
    assert json.loads((work / "analysis.json").read_text())["dataset"] == "mine.npz"
    # A workdir from a stranger does not say where files are read.
    config = json.loads((work / "config.json").read_text())
    (work / "config.json").write_text(json.dumps(config | {"dataset": str(tmp_path / "mine.npz")}))
    (work / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match="has a directory"):
        analyze.main([f"--workdir={work}"])
    with pytest.raises(errors.UserError, match=r"a path, and config\.data_dir is .*; only one of"):
        search.main([*SMALL, f"--config.dataset={tmp_path}/mine.npz", f"--config.data_dir={tmp_path}"])
