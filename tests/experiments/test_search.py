"""The search as a user meets it: its command line, its files, its exit status."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import cli, search
from highway_jax import MLP, checkpoint, data

ROOT = Path(__file__).parents[2]
SMALL = ["--config=digits_depth10", "--config.num_runs=3", "--config.epochs=2"]


def command(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", "experiments.search", *args],
        cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir made by a real process, and what the process said."""
    workdir = tmp_path_factory.mktemp("search") / "work"
    return workdir, command(*SMALL, f"--workdir={workdir}")


def test_a_search_says_what_it_found(finished):
    _, process = finished
    assert (process.returncode, process.stderr) == (0, "")
    for text in ("3 runs of each network", "highway: epoch 2/2, best loss", "best run", "diverged runs", "figure1.png"):
        assert text in process.stdout


def test_the_workdir_keeps_the_contract(finished):
    workdir, _ = finished
    assert json.loads((workdir / "config.json").read_text())["num_runs"] == 3
    assert (workdir / "figure1.png").read_bytes().startswith(b"\x89PNG")

    runs, curves = rows(workdir / "runs.csv"), rows(workdir / "curves.csv")
    assert [(r["network"], r["run"]) for r in runs] == [(n, str(i)) for n in ("highway", "plain") for i in range(3)]
    assert list(curves[0]) == ["network", "run", "epoch", "train_loss"]
    assert len(curves) == 2 * 3 * 2

    summary = json.loads((workdir / "summary.json").read_text())
    for network in ("highway", "plain"):
        mine = [r for r in runs if r["network"] == network]
        losses = {
            run["run"]: [float(c["train_loss"]) for c in curves if (c["network"], c["run"]) == (network, run["run"])]
            for run in mine
        }
        for run in mine:
            curve = losses[run["run"]]
            finite = [loss for loss in curve if math.isfinite(loss)]
            assert float(run["best_loss"]) == min(finite, default=math.inf)
            assert float(run["final_loss"]) == curve[-1] or not math.isfinite(curve[-1])
            assert run["diverged"] == str(len(finite) < 2)
            assert run["activation"] in ("relu", "tanh")
            assert (run["transform_bias"] == "") == (network == "plain")
        best = min(mine, key=lambda run: float(run["best_loss"]))
        assert summary[network]["best_run"] == int(best["run"])
        assert best["rank"] == "1"
        assert math.isclose(summary[network]["best_loss"], float(best["best_loss"]), rel_tol=1e-6)
        assert summary[network]["diverged"] == sum(run["diverged"] == "True" for run in mine)


def test_both_networks_share_what_they_have_in_common(finished):
    runs = rows(finished[0] / "runs.csv")
    for highway, plain in zip(runs[:3], runs[3:], strict=True):
        for column in ("learning_rate", "momentum", "decay", "activation"):
            assert highway[column] == plain[column]


def test_the_best_runs_parameters_give_its_test_accuracy(finished):
    workdir, _ = finished
    best = next(r for r in rows(workdir / "runs.csv") if r["network"] == "highway" and r["rank"] == "1")
    assert best["best_epoch"] == "2"  # the parameters are of that epoch; the accuracy, of the last
    params = checkpoint.restore_params(workdir / "best/highway")
    test = data.load("digits").test
    logits = MLP(depth=10, activation=best["activation"]).apply({"params": params}, test.images / np.float32(16))
    assert math.isclose((logits.argmax(-1) == test.labels).mean(), float(best["test_accuracy"]), rel_tol=1e-6)


def test_a_finished_workdir_is_printed_again_and_left_alone(finished):
    workdir, first = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    process = command(*SMALL, f"--workdir={workdir}")
    assert (process.returncode, process.stderr) == (0, "")
    assert first.stdout[first.stdout.index("best run") :] in process.stdout
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_a_workdir_of_another_config_is_refused(finished):
    workdir, _ = finished
    process = command(*SMALL, "--config.seed=5", f"--workdir={workdir}")
    assert process.returncode == 2
    assert process.stderr.startswith("error: --workdir")
    assert process.stderr.endswith("another config: seed (0 there, 5 now)\n")


def test_help_is_the_programs_docstring():
    process = command("--help")
    assert process.returncode == 0
    assert "--config=NAME" in process.stdout


MISTAKES = [
    ([], "--config is missing; it must be one of digits_depth10, .*mnist_depth100, or a path"),
    (["--config=digits_depth7"], "--config is 'digits_depth7'; it must be one of digits_depth10"),
    (["--config=nowhere.py"], "--config is 'nowhere.py', but there is no such file"),
    ([*SMALL, "--config.epoch=3"], "--config.epoch is not a key of the config; the keys are batch_size"),
    ([*SMALL, "--config.search=3"], "the keys are search.activation"),
    ([*SMALL, "--config.epochs=three"], "--config.epochs is 'three'; it must be of type int"),
    (["--config=digits_depth10", "--config.epochs"], "--config.epochs is given without a value"),
    ([*SMALL, "--config.epochs="], "--config.epochs is given without a value"),
    ([*SMALL, "--config.num_runs=0"], "config.num_runs is 0; it must be an integer of at least 1"),
    ([*SMALL, "--config.epochs=-1"], "config.epochs is -1; it must be an integer of at least 1"),
    ([*SMALL, "--config.depth=1"], "config.depth is 1; it must be an integer of at least 2"),
    ([*SMALL, "--config.width.plain=0"], "config.width.plain is 0; it must be an integer of at least 1"),
    ([*SMALL, "--config.runs_per_batch=0"], "config.runs_per_batch is 0; it must be an integer of at least 1"),
    ([*SMALL, "--config.seed=-3"], "config.seed is -3; it must be an integer of at least 0"),
    ([*SMALL, "--config.batch_size=1501"], "config.batch_size is 1501; it must be at most 1500"),
    ([*SMALL, "--config.networks=residual"], "config.networks is .*; it must be one or more of highway, plain"),
    ([*SMALL, "--config.search.momentum=(0.9, 0.8)"], r"config.search.momentum is \(0.9, 0.8\), an inverted range"),
    ([*SMALL, "--config.search.decay=(0.9, x)"], "config.search.decay is .* must be a range"),
    (
        [*SMALL, "--config.search.activation=elu"],
        "config.search.activation is .*; it must be one or more of relu, tanh",
    ),
    ([*SMALL, "--config.dataset=nonesuch"], "dataset 'nonesuch' is unknown; allowed are 'digits' and"),
    ([*SMALL, "--config.data_dir=/no/such"], "config.data_dir is '/no/such'; it must be an existing directory"),
    (["--config=mnist_depth10", "--config.data_dir=."], "dataset 'mnist' is not prepared in .*; prepare it with: "),
    ([*SMALL, "--workdir=setup.py"], "--workdir is 'setup.py', which is a file"),
    ([*SMALL, "--workdir=/proc/nowhere"], "--workdir is '/proc/nowhere', which cannot be written"),
    ([*SMALL, "--wrokdir=x"], "Unknown command line flag 'wrokdir'"),
    ([*SMALL, "stray"], "unexpected argument 'stray'"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=[args[-1] if args else "nothing" for args, _ in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(args, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    if not any(arg.startswith("--workdir") for arg in args):
        args = [f"--workdir={tmp_path / 'work'}", *args]
    monkeypatch.setattr(sys, "argv", ["search", *args])
    with pytest.raises(SystemExit) as stop:
        cli.run(search.main, search.__doc__)
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("error: ")
    assert re.search(message, errors)
    assert not (tmp_path / "work").exists()  # nothing is left behind


def test_a_mistake_in_a_real_process_leaves_no_traceback(tmp_path):
    process = command(*SMALL, "--config.num_runs=0", f"--workdir={tmp_path}/work")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "error: config.num_runs is 0; it must be an integer of at least 1\n"


def test_a_users_own_config_file_and_a_fixed_hyperparameter(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from experiments.configs.figure1 import random_search\n"
        "def get_config():\n"
        "    return random_search('digits', depth=3, batch_size=500, epochs=1)\n"
    )
    args = [f"--config={tmp_path}/mine.py", "--config.num_runs=2", "--config.networks=plain"]
    args += ["--config.search.momentum=0.5", f"--workdir={tmp_path}/work"]
    search.main(args)
    assert "1500 training images, depth 3, 2 runs" in capsys.readouterr().out
    assert [run["momentum"] for run in rows(tmp_path / "work/runs.csv")] == ["0.5", "0.5"]


def test_runs_that_all_diverge_are_reported_as_such(tmp_path, capsys):
    args = [*SMALL, "--config.networks=highway", "--config.search.learning_rate=1e38", f"--workdir={tmp_path}/work"]
    search.main(args)
    assert "3 of 3" in capsys.readouterr().out
    summary = json.loads((tmp_path / "work/summary.json").read_text())
    assert summary["highway"]["best_loss"] is None
    assert [run["best_loss"] for run in rows(tmp_path / "work/runs.csv")] == ["inf"] * 3
    assert jax.tree.leaves(checkpoint.restore_params(tmp_path / "work/best/highway"))
