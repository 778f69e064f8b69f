"""A sample of bad input, the values that keys take from a command line, and unusual terminals."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.app import entry
from experiments.configs import loading
from highway_jax import data
from tests.experiments import bad_input

ROOT = Path(__file__).parents[2]
KEYS = [(family, name, key) for family, keys in bad_input.FAMILIES.items() for name, key in keys.items()]
SMALL = ["--config=digits_depth10", "--config.num_runs=2", "--config.epochs=1", "--config.networks=highway"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = bad_input.Place(tmp_path_factory.mktemp("bad"))
    place.search()
    return place


def test_bad_input_is_one_line_and_status_2_within_seconds(place):
    sample = bad_input.some(90)
    assert len(set(sample)) == 90
    failures = {bad: failure for bad in sample if (failure := place.failure(bad))}
    assert not failures


def command(program, *args, **options):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{program}", *args],
        cwd=options.pop("cwd", ROOT), env=environment, stderr=subprocess.PIPE, text=True, errors="replace", timeout=300,
        **options,
    )  # fmt: skip


def test_a_mistake_in_a_real_process_leaves_no_traceback():
    process = command(
        "search", "--config=digits_depth10", "--config.epochs=\udcff", stdout=subprocess.PIPE, env={"LC_ALL": "C"}
    )
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, name, key in KEYS if key.default is None], ids=lambda value: value
)
def test_none_can_be_given_wherever_it_is_the_default(family, name):
    assert value(loading.load(family, {name: "None"}).config, name) is None


def value(config, name):
    for part in name.split("."):
        config = config[part]
    return config


def takes_range(key):
    return bad_input.is_allowed(key, (0.25, 0.5)) and key.checked(0.5) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("family", "name", "key"), [pytest.param(*row, id=row[1]) for row in KEYS if takes_range(row[2])]
)
def test_a_range_or_a_number_can_be_given_wherever_a_range_can(family, name, key):
    for text, ends in {"(0.25, 0.5)": (0.25, 0.5), "0.5": (0.5, 0.5), "(0.5,)": (0.5, 0.5)}.items():
        assert key.checked(value(loading.load(family, {name: text}).config, name)) == ends


def test_ranges_are_of_every_hyperparameter():
    ranges = {name for _, name, key in KEYS if takes_range(key)}
    of_both = {"learning_rate", "momentum", "decay", "transform_bias"}
    assert ranges == of_both | {f"search.{name}" for name in of_both}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_search_goes_on_when_its_output_cannot_be_written_and_is_told_on_any_terminal(tmp_path):
    terminal = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "1", "TERM": "dumb"}
    again = {"cwd": tmp_path, "env": {**terminal, "PYTHONPATH": str(ROOT)}}
    with Path("/dev/full").open("w") as full:
        process = command("search", *SMALL, "--workdir=日本 ½", stdout=full, **copy.deepcopy(again))
    assert (process.returncode, process.stderr.count("\n")) == (1, 1)
    assert "its output could not be written: No space left on device" in process.stderr
    assert (tmp_path / "日本 ½/summary.json").exists()
    process = command("search", *SMALL, "--workdir=日本 ½", stdout=subprocess.PIPE, **again)
    assert (process.returncode, process.stderr) == (0, "")
    assert "median" in process.stdout and "figure1.png" in process.stdout


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (PermissionError(13, "Permission denied", "/data/x"), 2, "error: /data/x: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "error: a file: No space left on device\n"),
        (OSError("odd"), 1, "internal error: OSError: odd, in "),
        (FileNotFoundError(2, "No such file", f"{ROOT}/experiments/x.jinja"), 1, "internal error: FileNotFoundError: "),
        (KeyError("a\nb"), 1, "internal error: KeyError: 'a\\nb', in tests/experiments/test_bad_input.py, line "),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("debug", [False, True])
def test_a_bug_is_told_from_a_users_mistake(error, status, said, debug, monkeypatch, capsys):
    def main(argv):
        assert argv == []
        raise error

    monkeypatch.setattr(sys, "argv", ["search", *["--debug"] * debug])
    with pytest.raises(SystemExit) as stop:
        entry.run(main, "")
    errors = capsys.readouterr().err
    assert stop.value.code == status
    assert said in errors
    assert ("Traceback" in errors, errors.count("\n") > 1) == (debug, debug)


def test_a_broken_package_is_said_by_name(tmp_path, monkeypatch):
    (tmp_path / "tensorflow_datasets.py").write_text("raise SystemError('broken\\nhere')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorflow_datasets", raising=False)
    with pytest.raises(data.DataError, match=r"tensorflow_datasets, .*, cannot be imported: SystemError: broken"):
        data.tfds.tensorflow_datasets()
