"""Guided searches in workdirs, and their studies."""

import contextlib
import re
import shlex
import shutil
import signal
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from experiments import search
from experiments.app import errors, stops
from experiments.configs import loading, validation
from experiments.jobs import guiding, replaying
from experiments.workdir import reading
from highway_jax import population
from highway_jax.population import Result

optuna = pytest.importorskip("optuna")
SMALL = (
    "--config.depth=3", "--config.num_runs=6", "--config.runs_in_memory=2", "--config.epochs=2",
    "--config.batch_size=500", "--config.networks=highway", "--config.sampler=tpe",
    "--config.search.learning_rate=(0.1, 1e38)",
)  # fmt: skip


def result_of(space, best_loss):
    """Runs of a space's lower ends."""
    count = len(best_loss)
    values = {name: np.full(count, entry.low, np.float32) for name, entry in space.items() if name != "activation"}
    values["activation"] = np.array(["relu", "tanh"] * count)[:count]
    return Result(np.arange(count), values, {"train_loss": np.float32(best_loss)[:, None]}, "train_loss", "min", 1)


def space_of(**changes):
    """A search's space, some of its ranges others."""
    config = config_of()
    config.search.update(changes)
    return validation.check(config)[0]


def config_of(**changes):
    config = loading.load("digits_depth10", {}).config
    config.update(changes)
    return config


def run(workdir):
    search.main(["--config=digits_depth10", *SMALL, f"--workdir={workdir}"])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("guided") / "work"
    run(workdir)
    return workdir


def test_a_guided_search_leaves_a_study_of_its_runs(found):
    (runs,) = reading.load(found).results.values()
    space = space_of(learning_rate=(0.1, 1e38))
    drawn = population.Space(space).draw(population.keys(0)[0], np.arange(6))["momentum"]
    same = (runs.hyperparameters["momentum"] == drawn).tolist()
    assert same == [True] * 2 + [False] * 4  # the first generation is random search's
    guiding.store_results(found, space, {"highway": runs})  # once more changes nothing
    study = optuna.load_study(study_name="highway", storage=guiding.study_url(found))
    assert [trial.value for trial in study.trials] == runs.ranking.best.tolist()
    assert [trial.user_attrs["diverged"] for trial in study.trials] == runs.ranking.diverged.tolist()
    assert np.isinf(runs.ranking.best).any()
    for index, trial in enumerate(study.trials):
        assert trial.params == {name: values[index] for name, values in runs.hyperparameters.items()}


def test_a_stopped_guided_search_ends_as_if_undisturbed(found, tmp_path, monkeypatch):
    class Stop:
        asked = 0

        @property
        def signal(self):  # asked after every epoch; the third is in the middle of the second generation
            self.asked += 1
            return signal.SIGTERM if self.asked >= 3 else 0

    with monkeypatch.context() as patch:
        patch.setattr(stops, "stop_requests", lambda: contextlib.nullcontext(Stop()))
        with pytest.raises(errors.Interrupted):
            run(tmp_path)
    assert len(reading.load(tmp_path).results["highway"].runs) == 4
    (tmp_path / guiding.STUDIES).unlink()  # what is in it follows from the rest
    run(tmp_path)
    for name in "runs.csv", "curves.csv":
        assert (tmp_path / name).read_bytes() == (found / name).read_bytes()
    study = optuna.load_study(study_name="highway", storage=guiding.study_url(tmp_path))
    assert len(study.trials) == 6


def test_a_guided_run_by_itself_has_the_hyperparameters_that_it_was_given(found):
    search_found = reading.load(found)
    for number in 1, 5:
        config = replaying.config_of_run(search_found, "highway", number)
        space = population.Space(validation.check(config)[0])
        drawn = space.readable(space.draw(population.keys(0)[0], np.array([number])), 1)
        for name, values in search_found.results["highway"].hyperparameters.items():
            assert drawn[name] == values[number]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "grid"}, "config.sampler is 'grid'; it must be one of random, tpe"),
        ({"runs_in_memory": None}, "config.runs_in_memory is None; with .*'tpe'.* below config.num_runs, 6"),
        ({"runs_in_memory": 6}, "config.runs_in_memory is 6; with .*'tpe'.* below config.num_runs, 6"),
    ],
)
def test_mistakes_are_explained(changes, message):
    with pytest.raises(errors.UserError, match=message):
        validation.check(config_of(**{"sampler": "tpe", "num_runs": 6, "runs_in_memory": 2} | changes))


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(validation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.UserError, match=re.escape("pip install 'highway-jax[optuna]'")):
        validation.check(config_of(sampler="tpe", num_runs=6, runs_in_memory=2))


def test_a_study_that_is_damaged_or_locked_ends_no_work(tmp_path, capsys, monkeypatch):
    def assert_warned():
        guiding.store(tmp_path, space_of(), "highway", result_of(space_of(), [1]))
        warning = capsys.readouterr().err
        assert warning.startswith(f"warning: {study} could not be updated: ") and warning.count("\n") == 1

    study = tmp_path / guiding.STUDIES
    study.write_text("no database")
    assert_warned()
    study.unlink()
    monkeypatch.setattr(guiding, "PATIENCE", 0)
    with contextlib.closing(sqlite3.connect(study)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert_warned()
    guiding.store(tmp_path, space_of(), "plain", result_of(space_of(), [1, np.inf]))
    (_, trial) = optuna.load_study(study_name="plain", storage=guiding.study_url(tmp_path)).trials
    assert trial.value == np.inf and set(trial.params) == {"learning_rate", "momentum", "decay", "activation"}


@pytest.mark.parametrize("name", ["a%62", "%2f..%2f..", "#a?b c&d", "{SCHEMA_VERSION}", "{über", ":a"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_study_is_in_the_workdir_whatever_the_path_is(name, relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = (Path() if relative else tmp_path) / "runs" / name
    directory.mkdir(parents=True)
    guiding.store(directory, space_of(), "highway", result_of(space_of(), [1]))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "runs" / name / guiding.STUDIES]
    assert len(optuna.load_study(study_name="highway", storage=guiding.study_url(directory)).trials) == 1


def test_the_study_that_a_search_names_can_be_opened(found, tmp_path, capsys):
    directory = shutil.copytree(found, tmp_path / "a%62 {x}")
    run(directory)  # finished: said again
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "optuna-dashboard" in line]
    *_, url = shlex.split(line)
    assert optuna.get_all_study_names(url) == ["highway"]


def test_a_study_is_not_written_through_a_link(tmp_path):
    args = ["--config=digits_depth10", *SMALL, f"--workdir={tmp_path}/work"]
    search.main(args)
    study = tmp_path / "work" / guiding.STUDIES
    precious = study.rename(tmp_path / "precious")
    study.symlink_to(precious)
    before = precious.read_bytes()
    with pytest.raises(errors.UserError, match="holds a symbolic link"):
        search.main(args)
    assert precious.read_bytes() == before
