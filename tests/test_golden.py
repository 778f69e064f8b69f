"""Searches and trainings still give the results in the tables of tests/golden."""

import hashlib
import json
import math
import shutil

import jax
import numpy as np
import pytest

from experiments import train
from highway_jax.native import COMPILERS
from tests import golden
from tests.tfds_files import MNIST, write_tfds

# Relative. Drawn numbers are computed (exp, multiply-add): compilers' options alone change their last digit.
ROUNDING = 1e-6

# Curves, relative, by epoch. Seen with either implementation, with runs one by one and in lockstep, on one and two
# devices, with XLA's optimizations on and off, with the instructions of older CPUs (--xla_cpu_max_isa), and from 150
# starts with the initial weights' last digits changed: most runs differ by at most 2e-6. At the edge of stability
# rounding grows within an epoch to the size of the loss, and a relu at its kink changes a loss at once; those runs have
# about ten times what was seen, and none where that is no tolerance any more.
CLOSE, ANY = (1e-5,) * 4, np.inf
TOLERANCES = {
    ("highway", "3"): (1e-5, 1e-5, 1e-4, 1e-3),  # seen: 1e-7, 1e-6, 5e-6, 5e-5
    ("highway", "4"): (1e-5, 1e-5, 1e-5, 1e-4),  # 1e-7, 1e-7, 6e-7, 2e-6
    ("highway", "5"): (1e-5, 1e-5, 0.1, ANY),  # 1e-7, 4e-7, 7e-3, 5e-2
    ("plain", "1"): (ANY,) * 4,  # 5e-2, then inf in some
    ("plain", "4"): (1e-3, 1e-2, 2e-2, 0.1),  # 7e-5, 5e-4, 2e-3, 1e-2: one relu at its kink
    ("plain", "5"): (1e-4, ANY, ANY, ANY),  # 2e-6, 4e-2, then inf in some
}
CONVOLUTIONAL = {("highway", "0"): (1e-5, 1e-4), ("highway", "1"): (1e-5, 1e-4)}  # 3e-7, 2e-5


def table(name):
    return golden.read(golden.HERE / f"{name}.csv")


def assert_same(row, expected, rtol=0.0, atol=0.0):
    """Compare numbers within a tolerance, and texts exactly."""
    assert list(row) == list(expected)
    for name, value in expected.items():
        before, now = number(value), number(row[name])
        if before is None or now is None:
            assert row[name] == value, f"{name} of {row}, which was {expected}"
        else:
            np.testing.assert_allclose(now, before, rtol, atol, err_msg=f"{name} of {row}, which was {expected}")


def number(text):
    try:
        return float(text)
    except ValueError:
        return None


def assert_same_curves(rows, expected, tolerances):
    for row, before in zip(rows, expected, strict=True):
        at = "network", "run", "epoch"
        assert [row[name] for name in at] == [before[name] for name in at]
        rtol = tolerances.get((row["network"], row["run"]), CLOSE)[int(row["epoch"]) - 1]
        if rtol != ANY:
            for name in filter(lambda name: name not in at, before):
                atol = 0.01 + rtol if name.endswith("accuracy") else 0  # of three test images
                assert_same({name: row[name]}, {name: before[name]}, rtol, atol)


@pytest.mark.parametrize(
    ("values", "rtol", "atol"), [(golden.draws, ROUNDING, 0), (golden.orders, 0, 0), (golden.weights, 1e-5, 1e-6)]
)
def test_draws_orders_and_initial_weights_are_as_they_were(values, rtol, atol):
    for row, expected in zip(values(), table(values.__name__), strict=True):
        assert_same({name: str(value) for name, value in row.items()}, expected, rtol, atol)


@pytest.mark.parametrize("implementation", ["xla", "fused"])
def test_a_search_gives_the_curves_that_it_gave_with_what_was_drawn_and_ranks_by_them(implementation, tmp_path):
    if implementation == "fused" and not (jax.default_backend() == "cpu" and any(map(shutil.which, COMPILERS))):
        pytest.skip("needs a CPU and a C++ compiler")
    golden.search_digits(tmp_path / "work", implementation)
    runs, curves = (golden.read(tmp_path / "work" / name) for name in ("runs.csv", "curves.csv"))
    assert_same_curves(curves, table("digits_depth10"), TOLERANCES)
    drawn = [row for row in table("draws") if row["seed"] == "0"]
    for network in "highway", "plain":
        mine = [row for row in runs if row["network"] == network]
        for row, expected in zip(mine, drawn, strict=True):
            bias = {"transform_bias": "" if network == "plain" else expected["transform_bias"]}
            expected = {name: value for name, value in (expected | bias).items() if name != "seed"}
            assert_same({name: row[name] for name in expected}, expected, ROUNDING)
        best = []
        for row in mine:
            curve = [float(c["train_loss"]) for c in curves if (c["network"], c["run"]) == (network, row["run"])]
            best.append(min(curve))
            assert float(row["best_loss"]) == min(curve)
            assert int(row["best_epoch"]) == (curve.index(min(curve)) + 1 if math.isfinite(min(curve)) else 0)
            assert (row["diverged"], row["epochs"]) == (str(math.inf in curve), "4")
        order = sorted(range(6), key=best.__getitem__)
        assert [int(row["rank"]) for row in mine] == [order.index(run) + 1 for run in range(6)]


def test_training_gives_the_curves_that_it_gave(tmp_path):
    golden.train_digits(tmp_path / "work")
    assert_same_curves(golden.read(tmp_path / "work/curves.csv"), table("digits_conv"), CONVOLUTIONAL)


def test_what_is_held_out_is_the_rest_of_the_training_set_and_never_trained_on(tmp_path):
    """Dark images are labelled 0 and bright ones 1; all bright images are held out."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) >= 40
    images = (rng.integers(0, 20, (60, 28, 28, 1)) + 200 * labels[:, None, None, None]).astype(np.uint8)
    write_tfds(tmp_path, MNIST, (images, labels), (images[:9], labels[:9]))
    train.main(
        [
            "--config=mnist_conv16", "--config.stages=('dense 4',)", "--config.validation=20",
            "--config.batch_size=10", "--config.epochs=3", "--config.learning_rate=0.1",
            f"--config.data_dir={tmp_path}", f"--workdir={tmp_path}/work",
        ]
    )  # fmt: skip
    curves = golden.read(tmp_path / "work/curves.csv")
    assert {(row["test_accuracy"], row["validation_accuracy"]) for row in curves if row["epoch"] == "3"} == {
        ("1.0", "0.0")
    }
    parts = {"train": slice(40), "validation": slice(40, None), "test": slice(9)}
    assert json.loads((tmp_path / "work/provenance.json").read_text())["data_md5"] == {
        name: hashlib.md5(images[part].tobytes() + labels[part].astype(np.int32).tobytes()).hexdigest()
        for name, part in parts.items()
    }
