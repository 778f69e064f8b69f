"""The search as a user meets it: its command line, its files, its exit status."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pandas
import pytest
from tensorboard.backend.event_processing import event_accumulator

from experiments import report, search
from experiments.app import entry
from experiments.app.output import Output
from experiments.configs.figure1 import WIDTHS
from experiments.workdir import reading, writing
from highway_jax import MLP, checkpoint, data, population
from highway_jax.population import Result
from tests.workdirs import shared

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

    def make(folder):
        process = command(*SMALL, f"--workdir={folder}/work")
        said = {"returncode": process.returncode, "stdout": process.stdout, "stderr": process.stderr}
        (folder / "said.json").write_text(json.dumps(said))

    folder = shared(tmp_path_factory, "finished search", make)
    said = json.loads((folder / "said.json").read_text())
    return folder / "work", subprocess.CompletedProcess([], **said)


def test_a_search_says_what_it_found(finished):
    _, process = finished
    assert (process.returncode, process.stderr) == (0, "")
    for text in ("3 runs of each network", "highway: epoch 2/2, in 0:00:", "best run", "diverged runs", "figure1.png"):
        assert text in process.stdout


def test_the_workdir_keeps_the_contract(finished):
    directory, _ = finished
    assert json.loads((directory / "config.json").read_text())["num_runs"] == 3
    assert (directory / "figure1.png").read_bytes().startswith(b"\x89PNG")

    runs, curves = rows(directory / "runs.csv"), rows(directory / "curves.csv")
    assert [(r["network"], r["run"]) for r in runs] == [(n, str(i)) for n in ("highway", "plain") for i in range(3)]
    assert list(curves[0]) == ["network", "run", "epoch", "train_loss"]
    assert len(curves) == 2 * 3 * 2

    summary = json.loads((directory / "summary.json").read_text())
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
    directory, _ = finished
    best = next(r for r in rows(directory / "runs.csv") if r["network"] == "highway" and r["rank"] == "1")
    assert best["best_epoch"] == "2"  # the parameters are of that epoch; the accuracy, of the last
    params = checkpoint.restore_params(directory / "best/highway")
    test = data.load("digits").test
    logits = MLP(depth=10, activation=best["activation"]).apply({"params": params}, test["x"] / np.float32(16))
    assert math.isclose((logits.argmax(-1) == test["y"]).mean(), float(best["test_accuracy"]), rel_tol=1e-6)


def test_the_program_trains_as_the_library_does(finished):
    directory, _ = finished
    digits = data.load("digits")
    task = population.supervised(
        model=lambda hp: MLP(10, activation=hp["activation"], transform_bias=hp["bias"]),
        loss=population.cross_entropy,
        optimizer=lambda hp: optax.sgd(
            population.schedules.exponential_decay(hp["rate"], 30, hp["decay"], staircase=True), hp["momentum"]
        ),
        preprocess=lambda batch: {**batch, "x": batch["x"] / 16},
    )
    space = {
        "rate": population.log_uniform(1e-3, 1), "momentum": population.uniform(0.8, 0.99),
        "decay": population.uniform(0.9, 1), "activation": population.choice("relu", "tanh"),
        "bias": population.uniform(-10, -1),
    }  # fmt: skip
    result = population.fit(task, space, train=digits.train, num_runs=3, epochs=2, batch_size=50, progress=False)
    curves = [c for c in rows(directory / "curves.csv") if c["network"] == "highway"]
    for number in range(2):
        written = [float(c["train_loss"]) for c in curves if c["epoch"] == str(number + 1)]
        np.testing.assert_allclose(result.curves["train_loss"][:, number], written, rtol=1e-4)


def test_a_finished_workdir_is_printed_again_and_left_alone(finished, capsys):
    directory, first = finished
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    search.main([*SMALL, f"--workdir={directory}"])
    assert first.stdout[first.stdout.index("best run") :] in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_a_workdir_of_another_config_is_refused(finished, monkeypatch, capsys):
    directory, _ = finished
    errors = refused([*SMALL, "--config.seed=5", f"--workdir={directory}"], monkeypatch, capsys)
    assert errors.startswith("error: --workdir")
    assert errors.endswith("another config: seed (0 there, 5 now); choose another --workdir\n")


def test_the_tables_load_with_the_right_types(finished):
    directory, _ = finished
    text = {"network", "activation"}
    integers = {"run", "rank", "best_epoch", "epochs", "epoch"}
    for name in ("runs", "curves"):
        table, parquet = pandas.read_csv(directory / f"{name}.csv"), pandas.read_parquet(directory / f"{name}.parquet")
        assert list(table) == list(parquet)
        for column in table:
            kind = "O" if column in text else "i" if column in integers else "b" if column == "diverged" else "f"
            if kind != "O":
                assert (table[column].dtype.kind, parquet[column].dtype.kind) == (kind, kind), column
            pandas.testing.assert_series_equal(table[column], parquet[column], check_dtype=False, rtol=1e-6)


def test_runs_that_all_diverge_are_reported_as_such(tmp_path, capsys):
    more = "networks=highway", "evaluate_every=1", "search.learning_rate=1e38"
    search.main([*SMALL, *(f"--config.{change}" for change in more), f"--workdir={tmp_path}/work"])
    assert "3 of 3" in capsys.readouterr().out
    summary = json.loads((tmp_path / "work/summary.json").read_text())
    assert summary["highway"]["best_loss"] is None
    assert [run["best_loss"] for run in rows(tmp_path / "work/runs.csv")] == ["inf"] * 3
    assert jax.tree.leaves(checkpoint.restore_params(tmp_path / "work/best/highway"))
    # The columns of what is measured are there too.
    assert {len(row) for row in rows(tmp_path / "work/curves.csv")} == {5}
    assert {row["test_accuracy"] for row in rows(tmp_path / "work/curves.csv")} == {"nan"}


def test_event_files_and_every_epochs_accuracy(tmp_path, capsys):
    args = [*SMALL, "--config.networks=highway", "--config.tensorboard=True", "--config.evaluate_every=1"]
    search.main([*args, f"--workdir={tmp_path}/work"])
    events = event_accumulator.EventAccumulator(str(tmp_path / "work/tensorboard/highway")).Reload()
    curves = rows(tmp_path / "work/curves.csv")
    assert [event.step for event in events.Scalars("best_loss")] == [1, 2]
    for event in events.Scalars("best_loss"):
        lowest = min(float(row["train_loss"]) for row in curves if int(row["epoch"]) <= event.step)
        assert math.isclose(event.value, lowest, rel_tol=1e-6)
    assert all(0 <= float(row["test_accuracy"]) <= 1 for row in curves)
    last = [row["test_accuracy"] for row in curves if row["epoch"] == "2"]
    assert last == [run["test_accuracy"] for run in rows(tmp_path / "work/runs.csv")]


def test_groups_change_nothing_and_stopped_runs_go_no_further(tmp_path, capsys):
    args = ["--config=digits_depth10", "--config.num_runs=5", "--config.epochs=5", "--config.networks=highway"]
    for name, more in {"whole": [], "groups": ["runs_in_memory=2"], "halved": ["search.halving.every=2"]}.items():
        search.main([*args, *(f"--config.{change}" for change in more), f"--workdir={tmp_path / name}"])
    for file in "runs.csv", "curves.csv":
        assert (tmp_path / "groups" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()

    whole, halved = (reading.load(tmp_path / name).results["highway"] for name in ("whole", "halved"))
    epochs = halved.ranking.epochs
    assert sorted(epochs) == [2, 2, 4, 5, 5]  # 5 runs, then 3, then 2
    order = np.argsort(whole.curves["train_loss"][:, :2].min(axis=1))
    assert (epochs[order[:3]] > 2).all()
    for run in range(5):
        np.testing.assert_array_equal(halved.curve(run), whole.curve(run)[: epochs[run]])
    last, there = (found.curves["test_accuracy"][:, -1] for found in (halved, whole))
    np.testing.assert_array_equal(last, np.where(epochs == 5, there, np.nan))


def test_the_bias_is_told_of_networks_that_have_one(tmp_path):
    values = np.zeros(2, np.float32)
    drawn = {"learning_rate": values, "transform_bias": values - 3}
    result = Result(np.arange(2), drawn, {"train_loss": np.ones((2, 1), np.float32)}, "train_loss", "min", epochs=1)
    writing.write_tables(tmp_path, dict.fromkeys(WIDTHS, result), "highway", accuracies=False)
    biases = {row["network"]: row["transform_bias"] for row in rows(tmp_path / "runs.csv")}
    assert biases == {"highway": "-3.0", "plain": "", "residual": "", "fixed": "-3.0", "lstm": "-3.0"}


def test_help_is_the_programs_docstring(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search", "--help"])
    with pytest.raises(SystemExit) as stop:
        entry.run(search.main, search.__doc__)
    assert stop.value.code == 0
    assert "--config=NAME" in capsys.readouterr().out


def refused(args, monkeypatch, capsys):
    """What the program says of a mistake, in this process."""
    monkeypatch.setattr(sys, "argv", ["search", *args])
    with pytest.raises(SystemExit) as stop:
        entry.run(search.main, search.__doc__)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n"), errors[:7]) == (2, 1, "error: "), errors
    return errors


# What users rely on word for word; tests/experiments/bad_input.py has the rest.
MISTAKES = [
    ([], "--config is missing; it must be one of .*digits_depth10, .*mnist_depth1000, or a path"),
    (["--config=digits_depth7"], "--config is 'digits_depth7'; it must be one of .*digits_depth10"),
    (["--config=nowhere.py"], "--config is 'nowhere.py', but there is no such file"),
    ([*SMALL, "--config.epoch=3"], "--config.epoch is not a key of the config; the keys are batch_size"),
    ([*SMALL, "--config.search=3"], "the keys are search.activation"),
    ([*SMALL, "--config.epochs=three"], "--config.epochs is 'three'; it must be of type int"),
    (["--config=digits_depth10", "--config.epochs"], "--config.epochs has no value; write --config.epochs=VALUE"),
    ([*SMALL, "--config.num_runs=0"], "config.num_runs is 0; it must be an integer of at least 1\n"),
    ([*SMALL, "--config.num_runs=100000000000000000000"], "it must be an integer of at most 1000000"),
    (
        [*SMALL, "--config.num_runs=1000000", "--config.epochs=1000000"],
        "num_runs is 1000000 and config.epochs is 1000000",
    ),
    (
        [*SMALL, "--config.width.plain=100000"],
        "config.depth is 10 and config.width 100000: a single run takes 670.6 GiB of memory",
    ),
    ([*SMALL, f"--workdir={'x' * 300}"], "--workdir is 'x.*', which cannot be used: File name too long"),
    (
        [*SMALL, "--config.search.halving.every=1", "--config.search.halving.keep=1.0"],
        "config.search.halving.keep is 1.0; it must be a number between 0 and 1",
    ),
    ([*SMALL, "--config.batch_size=1501"], "config.batch_size is 1501; it must be at most 1500"),
    (
        [*SMALL, "--config.networks=dense"],
        "config.networks is .*; it must be one or more of highway, plain, residual, .*lstm",
    ),
    (
        [*SMALL, "--config.search.momentum=(0.9, 0.8)"],
        r"config.search.momentum is \(0.9, 0.8\); it must be .*, with low at most high",
    ),
    ([*SMALL, "--config.dataset=nonesuch"], "dataset 'nonesuch' is unknown; allowed are 'digits' and"),
    ([*SMALL, "--config.data_dir=/no/such"], "config.data_dir is '/no/such'; it must be an existing directory"),
    (["--config=mnist_depth10", "--config.data_dir=."], "dataset 'mnist' is not prepared in .*; prepare it with: "),
    ([*SMALL, "--workdir=setup.py"], "--workdir is 'setup.py', which is a file"),
    ([*SMALL, "--workdir=/proc/nowhere"], "--workdir is '/proc/nowhere', which cannot be written"),
    ([*SMALL, "--wrokdir=x"], "--wrokdir is not a flag; set a key of the config with --config.KEY=VALUE"),
    ([*SMALL, "stray"], "unexpected argument 'stray'"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=[args[-1] if args else "nothing" for args, _ in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(args, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    if not any(arg.startswith("--workdir") for arg in args):
        args = [f"--workdir={tmp_path / 'work'}", *args]
    assert re.search(message, refused(args, monkeypatch, capsys))
    if "takes" not in message:  # a network's size is known in a workdir alone
        assert not (tmp_path / "work").exists()  # nothing is left behind


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("c.depht = 3", "the config has a key 'depht'"),
        ("del c.depth", "the config has no key 'depth'"),
        ("c.seed = print", "in which config.seed is not JSON: TypeError"),
        ("raise ValueError('one\\ntwo')", "cannot be loaded: ValueError: one"),
        ("raise SystemExit(7)", "cannot be loaded: SystemExit: 7"),
        ("c = 3", "must return a ConfigDict"),
    ],
)
def test_a_mistake_in_a_users_config_file_is_one_line_and_status_2(body, message, monkeypatch, capsys, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\n"
        "from experiments.configs.figure1 import random_search\n"
        "def get_config():\n"
        "    c = random_search('digits', depth=3, batch_size=500, epochs=1)\n"
        f"    with c.ignore_type():\n        {body}\n    return c\n"
    )
    errors = refused([f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/work"], monkeypatch, capsys)
    assert re.search(message, errors)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [("config.json", "[1, 2]"), ("config.json", "{"), ("summary.json", ""), ("summary.json", '{"highway": {}}')],
)
def test_a_damaged_workdir_is_one_line_and_status_2(file, text, finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished[0], tmp_path / "work")
    (tmp_path / "work" / file).write_text(text)
    errors = refused([*SMALL, f"--workdir={tmp_path}/work"], monkeypatch, capsys)
    assert f"{file} is damaged" in errors


def test_the_home_directory_is_written_as_a_tilde(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0], tmp_path / "home/mine")
    search.main([*SMALL, "--workdir=~/mine"])
    assert f"Figure 1: {tmp_path}/home/mine/figure1.png" in capsys.readouterr().out
    report.main(["~/mine", "--output=~/page"])
    assert (tmp_path / "home/page/report.html").exists() and [path.name for path in tmp_path.iterdir()] == ["home"]
    errors = refused([*SMALL, "--workdir=~nobody-of-that-name/x"], monkeypatch, capsys)
    assert errors == "error: path '~nobody-of-that-name/x' begins with '~', for which there is no home directory\n"


def test_work_goes_on_when_nobody_reads_what_it_prints(monkeypatch):
    done = []

    def work(argv):
        for _ in range(2):
            print("a line", flush=True)
            Output().print("another")
        done.append(True)

    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream, monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "argv", ["work"])
        entry.run(work, "")
    assert (stop.value.code, done) == (0, [True])


def test_a_users_own_config_file_and_a_fixed_hyperparameter(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from experiments.configs.figure1 import random_search\n"
        "def get_config():\n"
        "    return random_search('digits', depth=3, batch_size=500, epochs=1)\n"
    )
    args = [f"--config={tmp_path}/mine.py", "--config.num_runs=2", "--config.networks=plain"]
    args += ["--config.search.momentum=0.5", f"--workdir={tmp_path}/work"]
    search.main(args)
    assert "digits, depth 3: 1500 training examples, 2 runs" in capsys.readouterr().out
    assert [run["momentum"] for run in rows(tmp_path / "work/runs.csv")] == ["0.5", "0.5"]
