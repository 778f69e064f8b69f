"""Analysis of the networks of real searches."""

import contextlib
import functools
import io
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import analyze, search, train
from experiments.app import entry
from experiments.app.errors import UserError
from experiments.pages import page
from experiments.workdir import reading
from highway_jax import MLP, analysis, checkpoint, data
from tests.experiments.test_report import Page
from tests.tfds_files import CIFAR100, write_tfds

FIGURES = ("figure2.png", "figure3.png", "figure4.png", "depth_in_use.png")
DRAWN = True


@pytest.fixture(scope="module")
def analyzed(searched, tmp_path_factory):
    """A copy of the search's workdir, analyzed, and the program's output."""
    workdir = tmp_path_factory.mktemp("analysis") / "work"
    shutil.copytree(searched, workdir)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        analyze.main([f"--workdir={workdir}"])
    return workdir, output.getvalue(), errors.getvalue()


@pytest.fixture
def unreported(monkeypatch):
    """Skip the report's figures, which take as long to draw as the analysis's."""
    monkeypatch.setattr(page, "write", lambda *_: None)


def read(workdir):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((workdir / "analysis.json").read_text(), parse_constant=refuse)


def test_what_a_search_found_is_analyzed_and_shown(analyzed, searched):
    workdir, output, errors = analyzed
    assert errors == ""
    best = int(json.loads((workdir / "summary.json").read_text())["highway"]["best_run"])
    first, *_, last, shown = output.splitlines()
    assert first.startswith(f"digits, depth 10, highway run {best} (rank 1) after epoch 3: 1500 training examples")
    assert re.fullmatch(rf"analysis: {workdir}/analysis\.json, \d+ s", last)
    assert shown == f"report: {workdir}/report.html"
    page, captions = Page(workdir / "report.html"), read(workdir)["captions"]
    assert tuple(captions) == FIGURES
    assert page.pictures[-4:] == [(workdir / name).read_bytes() for name in FIGURES]
    assert all(caption in page.text for caption in captions.values())
    for file in searched.rglob("*.json"):  # the search's own files are as they were
        assert (workdir / file.relative_to(searched)).read_bytes() == file.read_bytes()
    assert checkpoint.damaged_file(workdir, []) is None


def test_the_numbers_are_the_librarys(analyzed):
    workdir, *_ = analyzed
    found, digits = read(workdir), data.load("digits")
    highway = reading.load(workdir).results["highway"]
    activation = highway.hyperparameters["activation"][highway.ranking.order[0]]
    model = MLP(depth=10, activation=str(activation))
    params = checkpoint.restore_params(workdir / "best/highway")
    scale = functools.partial(data.rescale, max_value=16)

    gates = analysis.gate_statistics(model, params, digits.train, preprocess=scale)
    lesions = analysis.lesion(model, params, digits.train, preprocess=scale)
    dropped = analysis.drop_layers(model, params, digits.train, lesions.order, preprocess=scale)
    sample = analysis.inner_states(model, params, digits.train["x"][0], preprocess=scale)
    np.testing.assert_array_equal(np.float32(found["gates"]["bias"]), gates.bias)  # to the last bit
    np.testing.assert_array_equal(np.float32(found["gates"]["bias"]), params["layers"]["bias"][:, 50:])
    expected = {
        "gates": {**gates._asdict(), "open_layers": None},
        "sample": sample._asdict(),
        "lesions": lesions._asdict(),
        "dropped": dropped._asdict(),
    }
    for part, values in expected.items():
        for name, value in values.items():
            if value is not None:
                np.testing.assert_allclose(found[part][name], value, rtol=1e-4, atol=1e-6, err_msg=f"{part}.{name}")
    np.testing.assert_allclose(found["routing"], gates.routing, atol=1e-6)
    counts, edges = found["gates"]["open_layers"]["counts"], found["gates"]["open_layers"]["edges"]
    assert sum(counts) == 1500 and edges[0] <= gates.open_layers.mean() <= edges[-1]
    assert found["sample"]["label"] == digits.train["y"][0]

    summary = found["summary"]
    initial = highway.hyperparameters["transform_bias"][highway.ranking.order[0]]
    assert summary["biases_lowered"] == np.mean(gates.bias < initial)
    assert summary["worst_layer"] == lesions.error.argmax() + 1
    assert summary["minor_layers"] == sum(10 * lesions.damage <= lesions.damage.max())
    assert summary["droppable_layers"] == next(
        k - 1 for k, error in enumerate([*dropped.error, np.inf]) if error > lesions.intact_error + 0.01
    )
    np.testing.assert_allclose(summary["effective_layers"], analysis.effective_layers(lesions.damage), rtol=1e-4)
    assert f"{summary['biases_lowered']:.0%} are lower now" in found["captions"]["figure2.png"]


@pytest.mark.usefixtures("unreported")
def test_a_second_analysis_of_the_run_trained_again_says_the_same(analyzed, searched, tmp_path):
    workdir, *_ = analyzed
    arguments = "--network=highway", "--rank=1", f"--workdir={tmp_path}/trained"
    train.main([f"--from_search={searched}", *arguments])
    analyze.main([*arguments])
    for name in ("analysis.json", *FIGURES):
        assert (tmp_path / "trained" / name).read_bytes() == (workdir / name).read_bytes(), name


@pytest.mark.usefixtures("unreported")
def test_any_run_whose_parameters_are_there_is_analyzed(searched, tmp_path):
    workdir = shutil.copytree(searched, tmp_path / "work")
    (workdir / "SHA256SUMS").unlink()
    runs = reading.load(workdir).results["highway"]
    last = int(runs.runs[runs.ranking.order[2]])
    params = jax.tree.map(lambda leaf: leaf / 2, checkpoint.restore_params(workdir / "best/highway"))
    checkpoint.save_params(workdir / f"params/highway/run{last}", params)
    analyze.main([f"--workdir={workdir}", f"--run={last}", "--title=Half, $x_$ \udcff"])
    found = read(workdir)
    assert "on Half, $x_$ ?" in found["captions"]["figure2.png"]
    assert (found["rank"], found["epoch"], found["parameters"]) == (3, 3, f"params/highway/run{last}")
    np.testing.assert_array_equal(np.float32(found["gates"]["bias"]), params["layers"]["bias"][:, 50:])


@pytest.mark.usefixtures("unreported")
def test_cifar100_is_searched_and_analyzed_even_where_its_data_has_moved(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.permutation(100)
    images = rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    write_tfds(tmp_path / "data", CIFAR100, (images, labels, labels // 5), (images[:9], labels[:9], labels[:9] // 5))
    workdir = tmp_path / "work"
    changes = {"networks": "highway", "num_runs": 2, "epochs": 1, "batch_size": 25, "depth": 10}
    changes["data_dir"] = tmp_path / "data"
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    search.main(["--config=cifar100_depth50", f"--workdir={workdir}", *overrides])
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(data.NotPreparedError):  # what config.json says of places is not followed
        analyze.main([f"--workdir={workdir}"])
    analyze.main([f"--workdir={workdir}", f"--data_dir={tmp_path}/moved"])
    found = read(workdir)
    assert np.shape(found["gates"]["class_mean"]) == (100, 9, 50)
    assert found["gates"]["class_size"] == [1] * 100
    assert all(Image.open(workdir / name).width > 800 for name in FIGURES)


MISTAKES = {
    "no workdir": ([], "WORKDIR is missing; it must be the workdir of a search"),
    "not there": (["--workdir=nowhere"], "workdir 'nowhere' does not exist"),
    "no search's": (["--workdir={empty}"], "config.json is missing"),
    "unfinished": (["--workdir={unfinished}"], r"best/highway is missing; the workdir holds no parameters"),
    "no highway run": (["--workdir={plain}"], "holds no highway networks, the only ones with"),
    "plain": (["--workdir={work}", "--network=plain"], "--network is 'plain', which has no transform gates"),
    "unknown": (["--workdir={work}", "--network=dense"], "--network is 'dense'; it must be one of highway"),
    "another rank": (
        ["--workdir={work}", "--rank=2"],
        r"holds only the best run's parameters; train run \d first: python -m experiments.train "
        r"--from_search=.*work --network=highway --run=\d$",
    ),
    "rank 6": (["--workdir={work}", "--rank=6"], "--rank is 6; it must be 1 to 5"),
    "both": (["--workdir={work}", "--rank=1", "--run=1"], "either --run=N or --rank=N must be given, not both"),
    "a flipped bit": (["--workdir={flipped}"], r"best/highway/.* is damaged: its checksum is wrong"),
    "cut off": (["--workdir={cut}"], r"best/highway is damaged, or holds no parameters"),
    "another network's": (["--workdir={strange}"], "best/highway does not fit the workdir's config"),
    "diverged": (["--workdir={diverged}"], "best/highway holds parameters that are not finite"),
    "data": (["--workdir={work}", "--data_dir=nowhere"], "config.data_dir is 'nowhere'; it must be an existing dir"),
}


def test_the_figures_are_drawn_again_from_the_numbers_alone(analyzed, tmp_path):
    workdir = shutil.copytree(analyzed[0], tmp_path / "work")
    pictures, before = {name: (workdir / name).read_bytes() for name in FIGURES}, read(workdir)
    for name in FIGURES:
        (workdir / name).unlink()
    analyze.main(["--redraw", str(workdir)])
    assert read(workdir) == before
    for name, first in pictures.items():  # of samples, only a histogram is kept, and numbers are float64 now
        grey = [
            np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)
            for png in (first, (workdir / name).read_bytes())
        ]
        assert np.abs(grey[0] - grey[1]).mean() < 1
    analyze.main(["--redraw", str(workdir), "--title=$x_$"])
    assert read(workdir)["title"] == "$x_$" and "on $x_$;" in read(workdir)["captions"]["figure2.png"]
    analyze.main(["--redraw", str(workdir), "--title=\udcff"])
    assert read(workdir)["title"] == "?"
    with pytest.raises(UserError, match="--rank is given with --redraw, which takes --title alone"):
        analyze.main(["--redraw", str(workdir), "--rank=2"])
    whole = read(workdir)
    many = whole["gates"] | {"open_layers": {"counts": [1e13], "edges": [0, 1]}}
    without_epoch = {name: value for name, value in whole.items() if name != "epoch"}
    for damaged in ({}, without_epoch, whole | {"gates": many}):
        (workdir / "analysis.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"analysis\.json is damaged"):
            analyze.main(["--redraw", str(workdir)])
    (workdir / "analysis.json").unlink()
    with pytest.raises(UserError, match=r"analysis\.json is missing; experiments\.analyze without"):
        analyze.main(["--redraw", str(workdir)])


@pytest.fixture(scope="module")
def workdirs(searched, tmp_path_factory):
    """The search's workdir, and copies of it with one defect each."""
    folder = tmp_path_factory.mktemp("spoilt")
    names = ("unfinished", "plain", "flipped", "cut", "strange", "diverged")
    found = {name: shutil.copytree(searched, folder / name) for name in names}
    for name in set(names) - {"flipped"}:
        (found[name] / "SHA256SUMS").unlink()
    shutil.rmtree(found["unfinished"] / "best")
    (found["unfinished"] / "summary.json").unlink()
    config = json.loads((found["plain"] / "config.json").read_text()) | {"networks": ["plain"]}
    (found["plain"] / "config.json").write_text(json.dumps(config))
    for file in "runs.csv", "curves.csv", "summary.json":
        text = (found["plain"] / file).read_text()
        if file == "summary.json":
            text = json.dumps({"plain": json.loads(text)["plain"]})
        else:
            text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("highway"))
        (found["plain"] / file).write_text(text)
    biggest = {name: max((found[name] / "best/highway").rglob("*"), key=_size) for name in ("flipped", "cut")}
    content = bytearray(biggest["flipped"].read_bytes())
    content[len(content) // 2] ^= 1
    biggest["flipped"].write_bytes(content)
    shutil.rmtree(found["cut"] / "best/highway")
    (found["cut"] / "best/highway").mkdir()
    params = checkpoint.restore_params(searched / "best/highway")
    checkpoint.save_params(found["strange"] / "best/highway", jax.tree.map(lambda leaf: leaf[:-1], params))
    checkpoint.save_params(found["diverged"] / "best/highway", jax.tree.map(lambda leaf: leaf * np.nan, params))
    (folder / "empty").mkdir()
    return {**found, "work": searched, "empty": folder / "empty"}


def _size(file):
    return file.stat().st_size if file.is_file() else 0


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(kind, workdirs, tmp_path, monkeypatch, capsys):
    args, message = MISTAKES[kind]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["analyze", *(arg.format(**workdirs) for arg in args)])
    with pytest.raises(SystemExit) as stop:
        entry.run(analyze.main, analyze.__doc__)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n"), errors[:7]) == (2, 1, "error: "), errors
    assert re.search(message, errors)
    assert not any((workdir / "analysis.json").exists() for workdir in workdirs.values())
