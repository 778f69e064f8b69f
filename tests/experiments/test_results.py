"""A workdir is read back exactly, or refused with one line that names the file."""

import json
import os
import re
import signal

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments.app.errors import UserError
from experiments.configs import loading
from experiments.workdir import opening, reading
from highway_jax import checkpoint
from tests.workdirs import write_workdir

CURVES = {
    "highway": np.float32([[2, 1.5, 0.7], [2, np.inf, np.nan], [1, 3, 2]]),  # the second diverges, and is stopped
    "plain": np.float32([[2, 1.75, 0.9], [np.inf, np.inf, np.inf], [1, 3, 1e-7]]),
}


@settings(max_examples=30)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(width=32, allow_nan=False))
)
def test_curves_come_back_exactly(tmp_path_factory, curves):
    directory = write_workdir(tmp_path_factory.mktemp("work") / "x", {"plain": curves}, networks=("plain",))
    found = reading.load(directory).results["plain"]
    assert found.curves["train_loss"].dtype == np.float32
    np.testing.assert_array_equal(found.curves["train_loss"], curves)
    best = np.where(np.isfinite(curves), curves, np.inf).min(axis=1)
    diverged = ~np.isfinite(curves).all(axis=1)
    np.testing.assert_array_equal(found.ranking.best, best)
    np.testing.assert_array_equal(found.ranking.order, np.lexsort((best, diverged)))


def test_everything_else_comes_back(tmp_path):
    result = reading.load(write_workdir(tmp_path / "x", CURVES, seed=7))
    assert (result.config.seed, result.config.search.activation) == (7, ("relu", "tanh"))
    assert (result.results["plain"].seconds, result.provenance["commit"]) == (75, "abc123")
    assert list(result.results) == ["highway", "plain"]
    highway, plain = result.results.values()
    assert highway.hyperparameters["activation"].tolist() == ["relu", "tanh", "relu"]
    assert (highway.hyperparameters["transform_bias"] < 0).all()
    assert np.isnan(plain.hyperparameters["transform_bias"]).all()
    assert highway.ranking.order.tolist() == [0, 2, 1]
    assert plain.ranking.best_epoch.tolist() == [3, 0, 3]
    assert (highway.ranking.epochs.tolist(), highway.ranking.diverged.tolist()) == ([3, 2, 3], [False, True, False])
    np.testing.assert_array_equal(highway.curve(1), [2, np.inf])
    expected = np.random.default_rng(0).uniform(0.1, 0.9, (3, 5)).astype(np.float32)
    for column, name in enumerate(("learning_rate", "momentum", "decay")):
        np.testing.assert_array_equal(plain.hyperparameters[name], expected[:, column])
    np.testing.assert_array_equal(plain.curves["test_accuracy"][:, -1], expected[:, 4])


def test_an_unfinished_search_has_what_there_is(tmp_path):
    directory = write_workdir(tmp_path / "x", {"highway": CURVES["highway"]}, epochs=400, finished=False)
    lines = (directory / "curves.csv").read_text().splitlines(keepends=True)
    (directory / "curves.csv").write_text("".join(lines[:-1]))  # a run is an epoch behind
    result = reading.load(directory)
    assert (result.finished, list(result.results)) == (False, ["highway"])
    expected = CURVES["highway"].copy()
    expected[2, 2] = np.nan
    np.testing.assert_array_equal(result.results["highway"].curves["train_loss"], expected)


def test_further_columns_and_another_order_of_rows_do_no_harm(tmp_path):
    directory = write_workdir(tmp_path / "x", CURVES)
    before = reading.load(directory)
    for name in ("runs.csv", "curves.csv"):
        header, *lines = (directory / name).read_text().splitlines()
        lines = [header + ",more", *(line + ',"a, b"' for line in reversed(lines))]
        (directory / name).write_text("\n".join(lines) + "\n")
    after = reading.load(directory)
    for network in CURVES:
        pandas.testing.assert_frame_equal(after.results[network].table(), before.results[network].table())
        pandas.testing.assert_frame_equal(after.results[network].curves_table(), before.results[network].curves_table())


def replace(old, new):
    return lambda text: re.sub(old, new, text, count=1, flags=re.MULTILINE)


def edit(**values):
    return lambda text: json.dumps(json.loads(text) | values)


DAMAGE = [
    ("config.json", None, "is missing"),
    ("config.json", lambda text: text[:-1], "it is not JSON"),
    ("config.json", lambda text: "[1]", "it must be a JSON object"),
    ("config.json", lambda text: "[" * 10**5, "it is not JSON"),
    ("config.json", replace(r'"depth": 10', '"depth": "x"'), "depth is 'x'"),
    ("config.json", replace(r'"num_runs": 3', '"num_runs": 0'), "num_runs is 0"),
    ("config.json", replace(r'"num_runs": 3', '"num_runs": 10000'), "runs must be 0 to 9999"),
    ("config.json", replace(r'"highway", "plain"', "1"), r"networks is \[1\]"),
    ("config.json", replace(r'"seed"', '"a.b"'), "it has no 'seed'"),
    ("config.json", edit(search=None), "search is None"),
    ("config.json", edit(depth={}), r"depth is \{\}"),
    ("config.json", edit(epochs={}), r"epochs is \{\}"),
    ("provenance.json", edit(seconds={"highway": "x"}), "seconds of highway are 'x'"),
    ("config.json", edit(search="x"), "search is 'x'"),
    ("config.json", edit(search={"halving": 5}), "search.halving is 5"),
    ("config.json", replace('"search"', '"serach"'), "it must have either search or stages"),
    ("config.json", edit(sampler=0), "sampler is 0"),
    (
        "config.json",
        edit(networks=["plain", "dense"]),
        "it must be one or more of highway, plain, residual, fixed, lstm",
    ),
    ("provenance.json", edit(format=3, data_md5=[]), r"data_md5 is \[\]"),
    ("provenance.json", lambda text: "", "it is not JSON"),
    ("runs.csv", None, "is missing"),
    ("runs.csv", lambda text: "", "it is cut off"),
    ("runs.csv", lambda text: text.splitlines()[0] + "\n", "it has no rows"),
    ("runs.csv", lambda text: text[:-3], "cut off"),
    ("runs.csv", lambda text: text.replace("rank", "rnak"), "must have a column 'rank'"),
    ("runs.csv", lambda text: "".join(text.splitlines(keepends=True)[:-1]), "plain runs must be 0 to 2"),
    ("runs.csv", replace("^highway,0,", "highway,zero,"), "zero"),
    ("runs.csv", replace("^highway,0,", "hihgway,0,"), "'hihgway' is not one of the config's"),
    ("runs.csv", replace("^highway,0,1", "highway,0,2"), "the rank of highway's runs is not that of runs.csv"),
    ("runs.csv", replace("True", "Ture"), "diverged: 'Ture' is neither True nor False"),
    ("runs.csv", replace("relu", "rleu"), "activation is 'rleu'; it must be one of relu, tanh"),
    (
        "runs.csv",
        lambda text: (
            text.replace("plain,0,2,", "plain,0,9,")
            .replace("plain,2,1,", "plain,2,2,")
            .replace("plain,0,9,", "plain,0,1,")
        ),
        "the rank of plain's runs",
    ),
    ("runs.csv", replace("relu", "r" * 1000), "activation is 'r{40}'; it must be"),
    ("runs.csv", replace("relu", '"relu'), "it is no table"),
    ("curves.csv", None, "is missing"),
    ("curves.csv", lambda text: text[: len(text) // 2], "cut off"),
    (
        "curves.csv",
        lambda text: "".join(text.splitlines(keepends=True)[:-3]),
        "the best_loss of plain's runs is not that of runs.csv",
    ),
    ("curves.csv", lambda text: re.sub(".*,3,.*\n", "", text), "the epochs of highway must be 1 to 3"),
    ("curves.csv", replace("0.7", "0.6"), "best_loss of highway's runs is not that of runs.csv"),
    ("curves.csv", replace("0.7", "0,7"), "it is no table"),
    ("curves.csv", replace("0.7", "x"), "'x'"),
    ("curves.csv", replace("^highway,0,1,", "highway,0,2,"), "an epoch has two rows"),
    ("curves.csv", replace("^highway,0,1,", "highway,0,999999999,"), "the epochs of highway must be 1 to 3"),
    ("curves.csv", replace("^highway,0,1,", "highway,-1,1,"), "a row of run -1, which is not in runs.csv"),
    ("curves.csv", lambda text: text.replace("2.0", "\0"), "it is no text"),
]


# Where two files disagree, one is named.
NAMED_ELSEWHERE = (
    "runs must be 0 to 9999",
    "the rank of plain's runs",
    "the rank of highway's runs is not that of runs.csv",
)


@pytest.mark.parametrize(("file", "damage", "reason"), DAMAGE, ids=[f"{d[0]}: {d[2]}" for d in DAMAGE])
def test_damage_is_one_line_that_names_the_file(file, damage, reason, tmp_path):
    path = write_workdir(tmp_path / "x", CURVES) / file
    if damage is None:
        path.unlink()
    else:
        text = damage(path.read_text())
        assert text != path.read_text()
        path.write_text(text)
    with pytest.raises(UserError, match=reason) as stop:
        reading.load(path.parent)
    assert str(path) in str(stop.value) or reason in NAMED_ELSEWHERE
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("name", ["config.json", "curves.csv", "SHA256SUMS", "best/highway/data"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null")], ids=["pipe", "device"])
def test_a_pipe_or_a_device_in_a_workdir_is_refused_unread(make, name, tmp_path, monkeypatch):
    path = write_workdir(tmp_path / "x", CURVES) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    monkeypatch.setattr(checkpoint, "damaged_file", lambda *_: pytest.fail("it was read"))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it was opened, and nothing comes"))
    signal.alarm(5)
    config = loading.load("digits_depth10", {}).config
    for read in (lambda: reading.load(tmp_path / "x"), lambda: opening.is_finished(tmp_path / "x", config)):
        with pytest.raises(UserError, match=f"^{path} is neither a file nor a directory; remove it from the workdir$"):
            read()
    signal.alarm(0)


def test_bytes_that_are_no_text(tmp_path):
    path = write_workdir(tmp_path / "x", CURVES) / "curves.csv"
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    with pytest.raises(UserError, match=r"curves\.csv is damaged: it is no text"):
        reading.load(path.parent)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere", "workdir '.*nowhere' does not exist"), ("x" * 300, "does not exist"), ("file", "'.*file' is a file")],
)
def test_what_is_no_workdir(path, message, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        reading.load(tmp_path / path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/config\.json is missing; '.*empty' must be a workdir"):
        reading.load(tmp_path / "empty")


def test_a_hundred_runs_of_400_epochs(tmp_path):
    random = np.random.default_rng(0)
    curves = {network: random.uniform(1e-9, 3, (100, 400)).astype(np.float32) for network in ("highway", "plain")}
    result = reading.load(write_workdir(tmp_path / "x", curves))
    for network, losses in curves.items():
        np.testing.assert_array_equal(result.results[network].curves["train_loss"], losses)
    assert json.loads((tmp_path / "x/config.json").read_text())["epochs"] == 400
