"""Training a search's run again."""

import csv
import json
import re
import sys

import numpy as np
import pytest

from experiments import search, train
from experiments.app import entry
from experiments.workdir import reading
from highway_jax import MLP, checkpoint, data


@pytest.fixture
def found(searched):
    return searched


@pytest.mark.parametrize("which", [["--network=highway", "--rank=1"], ["--network=plain", "--run=3"]])
def test_a_run_by_itself_repeats_the_searchs_curve(which, found, tmp_path, capsys):
    train.main([f"--from_search={found}", *which, f"--workdir={tmp_path}/work"])
    assert "the curve repeats the search's exactly (3 epochs)" in capsys.readouterr().out
    network = which[0].removeprefix("--network=")
    (run,) = reading.load(tmp_path / "work").results[network].runs
    for name in ("runs.csv", "curves.csv"):
        there, here = ([r for r in rows(p / name) if (r["network"], r["run"]) == (network, str(run))] for p in
                       (found, tmp_path / "work"))  # fmt: skip
        for before, now in zip(there, here, strict=True):
            assert {k: v for k, v in now.items() if k in before and k != "rank"} == {
                k: v for k, v in before.items() if k != "rank"
            }


def test_a_run_goes_on_for_longer_and_is_evaluated(found, tmp_path, capsys):
    args = [f"--from_search={found}", "--network=highway", "--run=2", "--config.epochs=5", f"--workdir={tmp_path}/work"]
    train.main(args)
    assert "the curve repeats the search's exactly (3 epochs)" in capsys.readouterr().out
    (run,) = rows(tmp_path / "work/runs.csv")
    curve = rows(tmp_path / "work/curves.csv")
    assert [row["epoch"] for row in curve] == list("12345")
    assert run["test_accuracy"] == curve[-1]["test_accuracy"]
    params = checkpoint.restore_params(tmp_path / "work/params/highway/run2")
    test = data.load("digits").test
    logits = MLP(depth=10, activation=run["activation"]).apply({"params": params}, test["x"] / np.float32(16))
    assert np.isclose((logits.argmax(-1) == test["y"]).mean(), float(run["test_accuracy"]))
    train.main(args)
    assert "holds these results" in capsys.readouterr().out


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--config and --from_search are both missing; one must be given"),
        (["--from_search=nowhere"], "'nowhere' does not exist"),
        (["--from_search=FOUND", "--run=1"], "--network is missing; it must be one of highway, plain"),
        (["--from_search=FOUND", "--network=residual", "--run=1"], "--network is 'residual'; it must be one of"),
        (["--from_search=FOUND", "--network=plain"], "either --run=N or --rank=N must be given"),
        (["--from_search=FOUND", "--network=plain", "--run=5"], "--run is 5; it must be 0 to 4"),
        (["--from_search=FOUND", "--network=plain", "--rank=0"], "--rank is 0; it must be 1 to 5"),
        (["--from_search=FOUND", "--network=plain", "--run=x"], "invalid literal"),
        (["--from_search=FOUND", "--network=plain", "--run=1", "--config.epoch=3"], "--config.epoch is not a key"),
        (["--from_search=FOUND", "--network=plain", "--run=1", "--workdir=FOUND"], "another config: .*num_runs"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(args, message, found, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *(arg.replace("FOUND", str(found)) for arg in args)])
    with pytest.raises(SystemExit) as stop:
        entry.run(train.main, train.__doc__)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n"), errors[:7]) == (2, 1, "error: "), errors
    assert re.search(message, errors)
    assert not list(tmp_path.iterdir())


def test_a_search_of_later_runs_goes_on_where_a_smaller_one_ended(found, tmp_path):
    """Run i is run i, whichever search it is part of."""
    search.main([
        "--config=digits_depth10", "--config.num_runs=2", "--config.first_run=3", "--config.epochs=3",
        "--config.batch_size=150", "--config.networks=highway", f"--workdir={tmp_path}/work",
    ])  # fmt: skip
    whole, part = reading.load(found).results["highway"], reading.load(tmp_path / "work").results["highway"]
    assert part.runs.tolist() == [3, 4]
    np.testing.assert_array_equal(part.curves["train_loss"], whole.curves["train_loss"][3:])
    best = json.loads((tmp_path / "work/summary.json").read_text())["highway"]["best_run"]
    assert best in (3, 4)
