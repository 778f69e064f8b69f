"""Datasets from a function of the user's config file."""

import json
import re
import sys

import numpy as np
import pytest

from experiments import analyze, plan, search, train
from experiments.app import entry
from experiments.configs import loading
from experiments.jobs import datasets
from experiments.workdir import reading
from highway_jax import data

FILE = """
import numpy as np
from experiments.configs.{module} import {make}
from highway_jax import data
rng = np.random.default_rng({seed})
x = rng.normal(size=(60, 5))
y = (x[:, 0] > 0).astype(int)
images = rng.integers(0, 256, (60, 6, 5, 1), np.uint8)

def rings():
    {body}

def get_config():
    config = {make}(rings, {options})
    return config
"""
SMALL = "--config.num_runs=2", "--config.networks=highway"
SEARCH = {"module": "figure1", "make": "random_search", "options": "depth=3, batch_size=10, epochs=2"}
TRAINING = {"module": "convolutional", "make": "training", "options": "('conv 2 3x3', 'highway 3x3'), 1, 10"}


def write(path, body="return {'x': x, 'y': y}", seed=0, **of):
    path.write_text(FILE.format(body=body, seed=seed, **(of or SEARCH)))
    return f"--config={path}"


def status(main, argv, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", *argv])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        entry.run(main, "")
    return exit.value.code, capsys.readouterr().err


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A config file and the workdir of its search."""
    folder = tmp_path_factory.mktemp("searched")
    search.main([write(folder / "mine.py"), *SMALL, f"--workdir={folder}/work"])
    return folder


def test_a_workdir_has_the_functions_name_and_the_datas_md5(searched, tmp_path):
    found = reading.load(searched / "work")
    assert found.config.dataset == "mine.rings()"
    x = np.random.default_rng(0).normal(size=(60, 5))
    given = data.from_arrays("any", {"x": x, "y": (x[:, 0] > 0).astype(int)})
    assert found.provenance["data_md5"] == {"train": data.md5(given.train), "test": data.md5(given.test)}
    plan.main([f"--config={searched}/mine.py", *SMALL])


def test_what_reads_the_workdir_gets_the_data_from_the_config_file(searched, monkeypatch, capsys, tmp_path):
    work, config = f"{searched}/work", f"--config={searched}/mine.py"
    again = [f"--from_search={work}", "--network=highway", "--run=1", f"--workdir={tmp_path}/again"]
    for main, argv in (analyze.main, [f"--workdir={work}"]), (train.main, again):
        message = "error: dataset 'mine.rings()' comes from a function in a config file; --config must name the file"
        assert status(main, argv, monkeypatch, capsys) == (2, message + "\n")
        other = write(tmp_path / "other.py")
        assert status(main, [*argv, other], monkeypatch, capsys) == (
            2,
            f"{message}; the file given has other.rings()\n",
        )
        code, errors = status(main, [*argv, write(tmp_path / "mine.py", seed=1)], monkeypatch, capsys)
        assert code == 2 and "was made with other data: the MD5 of 'train'" in errors
    analyze.main([f"--workdir={work}", config])
    assert json.loads((searched / "work/analysis.json").read_text())["dataset"] == "mine.rings()"
    train.main([*again, config])
    assert "the curve repeats the search's exactly" in capsys.readouterr().out


def test_a_finished_search_is_not_another_functions(searched, monkeypatch, capsys, tmp_path):
    options = [*SMALL, f"--workdir={searched}/work"]
    search.main([f"--config={searched}/mine.py", *options])
    assert "holds these results" in capsys.readouterr().out
    code, errors = status(search.main, [write(tmp_path / "mine.py", seed=1), *options], monkeypatch, capsys)
    assert code == 2 and "was made with other data" in errors
    search.main([write(tmp_path / "mine.py"), "--config.dataset=digits", "--config.num_runs=1", "--config.epochs=1",
                 "--config.networks=highway", f"--workdir={tmp_path}/digits"])  # fmt: skip
    assert reading.load(tmp_path / "digits").config.dataset == "digits"


def test_a_convolutional_network_takes_a_dataset(tmp_path):
    body = "s = {'x': images // 16, 'y': y}; return data.Dataset('any', s, s, 4, max_value=15)"
    train.main([write(tmp_path / "mine.py", body, **TRAINING), f"--workdir={tmp_path}/work"])
    assert reading.load(tmp_path / "work").config.dataset == "mine.rings()"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('one\\ntwo')", "fails: ValueError: one"),
        ("raise SystemExit(3)", "fails: SystemExit: 3"),
        ("return 3", "returns an object of type int; it must return a data.Dataset or a mapping of arrays"),
        ("return {'x': x}", "mine.rings() has arrays x; they must be x, y"),
        ("return {'x': x, 'y': y[:5]}", "mine.rings(): x has 60 examples and y 5"),
        ("return {'x': [[1], [2, 3]], 'y': y}", "fails: ValueError"),
        ("return {'x': x, 1: y}", "fails: TypeError"),
        ("return data.Dataset('any', {'x': images}, {}, 2)", "fails: KeyError"),
        ("s = {'x': x, 'y': y}; return data.Dataset('any', s, s, 2)", "images are float64"),
        ("s = {'x': x, 'y': y}; return data.Dataset('any', s, {'x': x}, 2, None)", "has arrays x, x_test, y"),
    ],
)
def test_what_a_function_returns_wrongly_is_one_line_and_status_2(body, message, monkeypatch, capsys, tmp_path):
    code, errors = status(
        search.main, [write(tmp_path / "mine.py", body), f"--workdir={tmp_path}/w"], monkeypatch, capsys
    )
    assert code == 2 and re.search(re.escape(message), errors) and "mine.rings()" in errors
    assert errors.count("\n") == 1 and not (tmp_path / "w").exists()


def test_numbers_of_a_dataset_keep_its_classes(tmp_path):
    body = "s = {'x': x, 'y': y}; return data.Dataset('any', s, s, 7, None)"
    _, config, function = loading.load(write(tmp_path / "mine.py", body).partition("=")[2], {})
    found = datasets.load(config.dataset, None, function)
    assert (found.name, found.num_classes, found.train["x"].dtype) == ("mine.rings()", 7, np.float32)
