"""Search guided by Optuna."""

import contextlib
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def trials(space, network, hyperparameters, best_loss):
    curves = np.float32(best_loss)[:, None]
    return guiding.trials(space, network, result_of(hyperparameters, curves))


def result_of(hyperparameters, curves, first_run=0):
    runs = np.arange(first_run, first_run + len(curves))
    return Result(runs, hyperparameters, {"train_loss": curves}, "train_loss", "min", curves.shape[1])


def drawn(space, count, seed=0):
    """Hyperparameters as random search draws them, without its compilation."""
    rng, values = np.random.default_rng(seed), {}
    for name in ("learning_rate", "momentum", "decay", "transform_bias"):
        low, high = np.float32(space[name].low), np.float32(space[name].high)
        share = rng.random(count)
        value = low * (high / low) ** share if name == "learning_rate" else low + share * (high - low)
        values[name] = np.clip(value.astype(np.float32), low, high)
    return {**values, "activation": rng.choice(space["activation"].options, count)}


def space_of(**changes):
    """A search's space, some of its ranges others."""
    config = config_of()
    config.search.update(changes)
    return validation.check(config)[0]


def config_of(**changes):
    config = loading.load("digits_depth10", {}).config
    config.update(changes)
    return config


def ranges(low, high):
    ends = st.floats(low, high, width=32)
    return st.tuples(ends, ends).map(lambda pair: tuple(sorted(pair)))


SPACES = st.builds(
    space_of,
    learning_rate=ranges(2**-20, 8) | st.just((1e-3, 0.1)),
    momentum=ranges(0, 0.875) | st.just((0.8, 0.99)),
    decay=ranges(0.125, 1) | st.just((0.9, 0.95)),
    activation=st.sampled_from([("relu",), ("tanh", "relu")]),
    transform_bias=ranges(-10, 10) | st.just((-0.1, -0.1)),
)


@settings(max_examples=5)
@given(SPACES, st.integers(0, 2**32 - 1), st.sampled_from(["highway", "plain"]))
def test_suggestions_are_from_the_space_and_follow_from_the_seed_and_the_runs_before(space, seed, network):
    first = drawn(space, 4, seed)
    finished = trials(space, network, first, [1, np.inf, 0.1, 0.5])
    draws, again = (guiding.suggest(space, network, seed, 4, 3, finished) for _ in range(2))
    for name, values in draws.items():
        np.testing.assert_array_equal(values, again[name])
        assert values.shape == (3,)
        if name == "activation":
            assert set(values) <= set(space["activation"].options)
        else:
            low, high = np.float32(space[name].low), np.float32(space[name].high)
            assert ((low <= np.float32(values)) & (np.float32(values) <= high)).all()
    trials(space, network, draws, [1, 2, 3])  # and Optuna accepts them back


def test_suggestions_learn_what_is_good_and_where_runs_diverge():
    space = space_of()

    def loss(hp):  # best at a learning rate of 0.01, relu and a bias of -3
        far = np.abs(np.log10(hp["learning_rate"]) + 2) + np.abs(hp["transform_bias"] + 3) / 3
        return np.where(hp["learning_rate"] > 0.1, np.inf, far + (hp["activation"] != "relu"))

    draws = [drawn(space, 20)]
    finished = []
    for generation in range(1, 4):
        finished += trials(space, "highway", draws[-1], loss(draws[-1]))
        draws.append(guiding.suggest(space, "highway", 0, 20 * generation, 20, finished))
    first, last = loss(draws[0]), loss(draws[-1])
    assert np.isinf(last).sum() < np.isinf(first).sum()
    assert np.median(last) < np.median(first) / 2


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


def test_a_run_that_was_stopped_early_is_pruned():
    draws = drawn(space_of(), 2)
    curves = np.float32([[3, 2, 1], [5, 4, np.nan]])
    ended, stopped = guiding.trials(space_of(), "highway", result_of(draws, curves, 7))
    assert (ended.state.name, ended.value, ended.user_attrs["run"]) == ("COMPLETE", 1, 7)
    assert (stopped.state.name, stopped.value, stopped.intermediate_values) == ("PRUNED", 4, {2: 4})


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
    with pytest.raises(errors.UserError, match=re.escape("pip install -e '.[optuna]'")):
        validation.check(config_of(sampler="tpe", num_runs=6, runs_in_memory=2))


def test_a_study_that_is_damaged_or_locked_ends_no_work(tmp_path, capsys):
    (tmp_path / guiding.STUDIES).write_text("no database")
    guiding.store(tmp_path, "highway", [])
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path / guiding.STUDIES} is left as it is: ") and warning.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["a%62", "a%20b", "%2f..%2f..", "#a", "a?b", "a b&c", "{SCHEMA_VERSION}", "{", "über", ":a"]
)
@pytest.mark.parametrize("relative", [True, False])
def test_a_study_is_in_the_workdir_whatever_the_path_is(name, relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = (Path() if relative else tmp_path) / "runs" / name
    directory.mkdir(parents=True)
    guiding.store(directory, "highway", trials(space_of(), "highway", drawn(space_of(), 1), [1]))
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
