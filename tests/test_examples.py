"""The examples, shortened, run and keep their promises."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from examples import deep_residual, nnx_classifier, tabular_regression
from highway_jax import checkpoint

ROOT = Path(__file__).parents[1]


def start(directory: Path) -> subprocess.Popen:
    """Run the first example with 2 runs of 25 epochs in its own process, in this directory."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "examples.tabular_regression", "2", "25"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_regression_continues_as_if_nothing_had_happened(tmp_path, monkeypatch, capsys):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    process = start(killed)
    deadline = time.monotonic() + 120
    results = "runs/tabular_regression"
    while not checkpoint.steps_in(killed / results / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    assert not (killed / results / "table.csv").exists()
    undisturbed.mkdir()
    said = []
    for directory in killed, undisturbed:
        monkeypatch.chdir(directory)
        with jax.default_matmul_precision(None):  # programs that other tests call leave theirs behind
            tabular_regression.main(2, 25)
        said.append(capsys.readouterr().out.splitlines())

    assert any("going on after epoch " in line for line in said[0])
    assert said[0][-1] == said[1][-1]
    assert "is best on the validation rows; its test error (MAE) is" in said[0][-1]
    tables = [(directory / results / "table.csv").read_bytes() for directory in (killed, undisturbed)]
    assert tables[0] == tables[1]
    assert tables[0].count(b"\n") == 3
    assert (killed / results / "curves.png").stat().st_size > 10_000


def test_the_best_classifier_is_the_same_in_plain_flax(capsys):
    result, accuracy = nnx_classifier.main(num_runs=10, epochs=2)
    best = result.table().set_index("rank").loc[1]
    assert accuracy == pytest.approx(best["best_test_accuracy"], abs=1e-6)
    assert accuracy > 0.5
    configurations = result.table(by="configuration")
    assert configurations["seeds"].tolist() == [5, 5]
    assert "in plain Flax" in capsys.readouterr().out


def test_deep_networks_are_compared_and_the_highway_one_is_looked_into(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deep_residual, "TRAIN", {name: array[:500] for name, array in deep_residual.TRAIN.items()})
    result, lesions = deep_residual.main(num_runs=6, epochs=1)
    assert set(result.hyperparameters["kind"]) == {"highway", "prenorm", "plain"}
    for kind, layers in ("highway", deep_residual.DEPTH - 1), ("prenorm", deep_residual.DEPTH - 2):
        assert lesions[kind].error.shape == (layers,)
        assert np.isfinite(lesions[kind].intact_loss)
        assert len(set(lesions[kind].loss.tolist())) > layers / 2  # each layer does something else
    assert (tmp_path / "runs/deep_residual/lesions.png").stat().st_size > 10_000
    assert "29 layers matter" in capsys.readouterr().out
