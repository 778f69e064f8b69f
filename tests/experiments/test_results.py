"""A workdir read back: exactly, or refused with one line that names the file."""

import json
import os
import re
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments import cli, results, workdir
from experiments.cli import UserError
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
    found = results.load(directory).networks["plain"]
    assert found.curves.dtype == np.float32
    np.testing.assert_array_equal(found.curves, curves)
    finite = np.where(np.isfinite(curves), curves, np.inf)
    np.testing.assert_array_equal(found.best_loss, finite.min(axis=1))
    np.testing.assert_array_equal(found.diverged, ~np.isfinite(curves).all(axis=1))
    np.testing.assert_array_equal(found.order, np.lexsort((found.best_loss, found.diverged)))


def test_everything_else_comes_back(tmp_path):
    result = results.load(write_workdir(tmp_path / "x", CURVES, seed=7))
    assert (result.config.seed, result.config.search.activation) == (7, ["relu", "tanh"])
    assert (result.summary["plain"]["seconds"], result.provenance["commit"]) == (75, "abc123")
    assert list(result.networks) == ["highway", "plain"]
    highway, plain = result.networks.values()
    assert highway.hyperparameters["activation"].tolist() == ["relu", "tanh", "relu"]
    assert (highway.hyperparameters["transform_bias"] < 0).all()
    assert np.isnan(plain.hyperparameters["transform_bias"]).all()
    assert highway.order.tolist() == [0, 2, 1]
    assert plain.best_epoch.tolist() == [3, 0, 3]
    assert (highway.epochs.tolist(), highway.diverged.tolist()) == ([3, 2, 3], [False, True, False])
    np.testing.assert_array_equal(highway.curve(1), [2, np.inf])
    expected = np.random.default_rng(0).uniform(0.1, 0.9, (3, 5)).astype(np.float32)
    for column, name in enumerate(("learning_rate", "momentum", "decay")):
        np.testing.assert_array_equal(plain.hyperparameters[name], expected[:, column])
    np.testing.assert_array_equal(plain.test_accuracy, expected[:, 4])


def test_an_unfinished_search_has_what_there_is(tmp_path):
    directory = write_workdir(tmp_path / "x", {"highway": CURVES["highway"]}, epochs=400, finished=False)
    lines = (directory / "curves.csv").read_text().splitlines(keepends=True)
    (directory / "curves.csv").write_text("".join(lines[:-1]))  # a run is an epoch behind
    result = results.load(directory)
    assert (result.summary, list(result.networks)) == (None, ["highway"])
    expected = CURVES["highway"].copy()
    expected[2, 2] = np.nan
    np.testing.assert_array_equal(result.networks["highway"].curves, expected)


def test_further_columns_and_another_order_of_rows_do_no_harm(tmp_path):
    directory = write_workdir(tmp_path / "x", CURVES)
    before = results.load(directory)
    for name in ("runs.csv", "curves.csv"):
        header, *lines = (directory / name).read_text().splitlines()
        lines = [header + ",more", *(line + ',"a, b"' for line in reversed(lines))]
        (directory / name).write_text("\n".join(lines) + "\n")
    after = results.load(directory)
    for network in CURVES:
        np.testing.assert_array_equal(after.networks[network].curves, before.networks[network].curves)
        np.testing.assert_array_equal(after.networks[network].best_loss, before.networks[network].best_loss)


def replace(old, new):
    return lambda text: re.sub(old, new, text, count=1, flags=re.MULTILINE)


def edit(**values):
    return lambda text: json.dumps(json.loads(text) | values)


DAMAGE = [
    ("config.json", None, "is missing"),
    ("config.json", lambda text: text[:-1], "it is no JSON"),
    ("config.json", lambda text: "[1]", "it must be a JSON object"),
    ("config.json", lambda text: "[" * 10**5, "it is no JSON"),
    ("config.json", replace(r'"depth": 10', '"depth": "x"'), "depth is 'x'"),
    ("config.json", replace(r'"num_runs": 3', '"num_runs": 0'), "num_runs is 0"),
    ("config.json", replace(r'"num_runs": 3', '"num_runs": 1000000000000'), "runs must be 0 to 999999999999"),
    ("config.json", replace(r'"highway", "plain"', "1"), r"networks is \[1\]"),
    ("config.json", replace(r'"seed"', '"a.b"'), "a.b"),
    ("config.json", edit(search=None), "search is None"),
    ("config.json", edit(search="x"), "search is 'x'"),
    ("config.json", edit(search={"halving": 5}), "search.halving is 5"),
    ("config.json", replace('"search"', '"serach"'), "it must have either search or stages"),
    ("config.json", edit(sampler=0), "sampler is 0"),
    ("config.json", edit(networks=["plain", "dense"]), "they must be of highway, plain, residual, fixed, lstm"),
    ("summary.json", edit(highway={}), "best_run of highway is 'missing'"),
    ("summary.json", replace('"diverged": 1', '"diverged": 1.5'), "diverged of highway is 1.5"),
    ("summary.json", replace('"best_loss": null', '"best_loss": "x"'), "best_loss of highway is 'x'"),
    ("summary.json", replace('"best_loss": null', f'"best_loss": {10**400}'), "best_loss of highway is 1000"),
    ("summary.json", edit(strange={}), "an entry of each of highway, plain, and no others"),
    ("provenance.json", edit(format=3, data_md5=[]), r"data_md5 is \[\]"),
    ("summary.json", lambda text: "{}", "an entry of each of highway, plain"),
    ("summary.json", lambda text: '{"highway": 1, "plain": 2}', "the entry of highway is 1"),
    ("provenance.json", lambda text: "", "remove the workdir"),
    ("runs.csv", None, "is missing"),
    ("runs.csv", lambda text: "", "it is no table"),
    ("runs.csv", lambda text: text.splitlines()[0] + "\n", "cut off"),
    ("runs.csv", lambda text: text[:-3], "cut off"),
    ("runs.csv", lambda text: text.replace("rank", "rnak"), "must have a column 'rank'"),
    ("runs.csv", lambda text: "".join(text.splitlines(keepends=True)[:-1]), "plain runs must be 0 to 2"),
    ("runs.csv", replace("^highway,0,", "highway,zero,"), "zero"),
    ("runs.csv", replace("^highway,0,", "hihgway,0,"), "'hihgway' is not one of the config's"),
    ("runs.csv", replace("^highway,0,1", "highway,0,2"), "highway ranks must be 1 to 3"),
    ("runs.csv", replace("True", "Ture"), "diverged is 'Ture'"),
    ("runs.csv", replace("relu", "rleu"), "activation is 'rleu'; it must be one of relu, tanh"),
    (
        "runs.csv",
        lambda text: (
            text.replace("plain,0,2,", "plain,0,9,")
            .replace("plain,2,1,", "plain,2,2,")
            .replace("plain,0,9,", "plain,0,1,")
        ),
        "order of plain's runs",
    ),
    ("runs.csv", replace("relu", "r" * 1000), "too long"),
    ("runs.csv", replace("relu", '"relu'), "it is no table"),
    ("curves.csv", None, "is missing"),
    ("curves.csv", lambda text: text[: len(text) // 2], "cut off"),
    ("curves.csv", lambda text: "".join(text.splitlines(keepends=True)[:-3]), "2 runs of plain, where runs.csv has 3"),
    ("curves.csv", lambda text: re.sub(".*,3,.*\n", "", text), "2 epochs of highway, where the config has 3"),
    ("curves.csv", replace("0.7", "0.6"), "best_loss of highway's runs is not that of runs.csv"),
    ("curves.csv", replace("0.7", "0,7"), "another number of fields"),
    ("curves.csv", replace("0.7", "x"), "'x'"),
    ("curves.csv", replace("^highway,0,1,", "highway,0,2,"), "twice"),
    ("curves.csv", replace("^highway,0,1,", "highway,0,999999999,"), "out of range"),
    ("curves.csv", replace("^highway,0,1,", "highway,-1,1,"), "4 runs of highway"),
    ("curves.csv", lambda text: text.replace("2.0", "\0"), "it is no text"),
]


# Where two files disagree, one is named.
NAMED_ELSEWHERE = ("runs must be 0 to 999999999999", "order of plain's runs")


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
        results.load(path.parent)
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
    config = cli.load_config("digits_depth10")[1]
    for read in (lambda: results.load(tmp_path / "x"), lambda: workdir.finished(tmp_path / "x", config)):
        with pytest.raises(UserError, match=f"^{path} is neither a file nor a directory; remove it from the workdir$"):
            read()
    signal.alarm(0)


def test_bytes_that_are_no_text(tmp_path):
    path = write_workdir(tmp_path / "x", CURVES) / "curves.csv"
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    with pytest.raises(UserError, match=r"curves\.csv is damaged: it is no text"):
        results.load(path.parent)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere", "workdir '.*nowhere' does not exist"), ("x" * 300, "does not exist"), ("file", "'.*file' is a file")],
)
def test_what_is_no_workdir(path, message, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        results.load(tmp_path / path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/config\.json is missing; '.*empty' must be a search's workdir"):
        results.load(tmp_path / "empty")


def test_a_hundred_runs_of_400_epochs(tmp_path):
    random = np.random.default_rng(0)
    curves = {network: random.uniform(1e-9, 3, (100, 400)).astype(np.float32) for network in ("highway", "plain")}
    result = results.load(write_workdir(tmp_path / "x", curves))
    for network, losses in curves.items():
        np.testing.assert_array_equal(result.networks[network].curves, losses)
    assert json.loads((tmp_path / "x/config.json").read_text())["epochs"] == 400
