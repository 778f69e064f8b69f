"""Search guided by Optuna."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from highway_jax import population
from highway_jax.population import Result, Task, choice, grid, log_uniform, uniform
from highway_jax.population.guided import suggest
from highway_jax.population.space import Choice, LogUniform, Space

optuna = pytest.importorskip("optuna")


def drawn(space, count, seed=0):
    """Configurations of a space as `fit` has them, without the compilation of its draws."""
    rng, columns = np.random.default_rng(seed), {}
    for name, entry in space.items():
        share = rng.random(count)
        if isinstance(entry, Choice):
            columns[name] = (share * len(entry.options)).astype(np.int32)
        else:
            low, high = np.float32(entry.low), np.float32(entry.high)
            values = low * (high / low) ** share if isinstance(entry, LogUniform) else low + share * (high - low)
            columns[name] = np.clip(values.astype(np.float32), low, high)
    return columns


def result_of(space, columns, curves, *, mode="min", seeds=1, first_run=0):
    """What `fit` has when the next generation is asked for; the curves of those that have not begun are NaN."""
    runs = np.arange(first_run, first_run + len(curves))
    values = Space(space).readable(columns, len(runs))
    curves = np.float32(curves) * (1 if mode == "min" else -1)
    return Result(runs, values, {"train_number": curves}, "train_number", mode, curves.shape[1], seeds)


def ends(low, high):
    pair = st.tuples(*[st.floats(low, high, width=32)] * 2)
    return pair.map(sorted)


ENTRIES = st.one_of(
    ends(-10, 10).map(lambda pair: uniform(*pair)),
    ends(2**-20, 8).map(lambda pair: log_uniform(*pair)),
    st.sampled_from([
        uniform(0.1, 0.1), log_uniform(1e-3, 0.1), choice("relu", "tanh"), choice(0.1, 0.3), choice(True, False),
        choice(np.float32(0.1), 2), choice("a", None, 0.1, static=True), choice(1, True, 1.0, static=True),
        choice(np.sin, np.cos, max, static=True), choice(5, static=True),
    ]),
)  # fmt: skip
SPACES = st.dictionaries(st.sampled_from("abcdef"), ENTRIES, min_size=1)


@settings(max_examples=25)
@given(SPACES, st.integers(0, 2**31 - 1), st.integers(1, 3), st.integers(0, 7), st.sampled_from(["min", "max"]))
def test_suggestions_are_from_the_space_and_follow_from_the_seed_and_the_runs_before(space, seed, seeds, first, mode):
    numbers = np.arange(first, first + 9)
    columns = {name: values[numbers // seeds] for name, values in drawn(space, 16, seed).items()}
    curves = np.array([1, np.inf, 0.1, 0.5, *[np.nan] * 5])[:, None]
    result = result_of(space, columns, curves, mode=mode, seeds=seeds, first_run=first)
    verbosity = optuna.logging.get_verbosity()
    chosen, again = (suggest(space, seed, numbers[4:7], result) for _ in range(2))
    assert optuna.logging.get_verbosity() == verbosity
    assert list(chosen) == list(space)
    for name, values in Space(space).positions(chosen).items():
        assert all(map(lambda a, b: a is b or a == b, chosen[name], again[name]))
        if not isinstance(space[name], Choice):
            assert (np.float32(space[name].low) <= values).all() and (values <= np.float32(space[name].high)).all()
        columns[name][4:7] = values
        # The runs of a configuration are alike, those of an earlier generation too.
        assert all(len(set(columns[name][:7][numbers[:7] // seeds == c])) == 1 for c in numbers[:7] // seeds)
    curves[4:7] = [[3], [2], [1]]
    trials = population.optuna_trials(space, result_of(space, columns, curves, mode=mode, seeds=seeds, first_run=first))
    assert len(trials) == len(set(numbers[:7] // seeds))  # and Optuna accepts them back


@pytest.mark.parametrize("mode", ["min", "max"])
def test_suggestions_learn_what_is_good_and_where_runs_diverge(mode):
    space = {"rate": log_uniform(1e-3, 1), "bias": uniform(-10, -1), "function": choice(np.sin, np.cos, static=True)}

    def number(columns):  # best at a rate of 0.01, a bias of -3 and the cosine
        far = np.abs(np.log10(columns["rate"]) + 2) + np.abs(columns["bias"] + 3) / 3 + (columns["function"] == 0)
        return np.where(columns["rate"] > 0.1, np.inf, far)

    columns = drawn(space, 20)
    for generation in range(1, 4):
        result = result_of(space, columns, number(columns)[:, None], mode=mode)
        chosen = suggest(space, 0, 20 * generation + np.arange(20), result)
        chosen = Space(space).positions(chosen)
        columns = {name: np.concatenate([columns[name], chosen[name]]) for name in space}
    first, last = number(columns)[:20], number(columns)[-20:]
    assert np.isinf(last).sum() < np.isinf(first).sum()
    assert np.median(last) < np.median(first) / 2


def test_a_trial_is_a_configuration_that_has_begun():
    space = {"rate": uniform(0, 1), "size": choice(np.float32(3), 5), "kind": grid("a", None, static=True)}
    space |= {"alike": choice(7, True, 7.0, static=True), "other": 7}
    columns = {"rate": np.float32([0.1] * 2 + [0.5] * 4), "size": [0, 0, 1, 1, 1, 1], "kind": [0, 0, 1, 1, 0, 0]}
    columns["alike"] = [2, 2, 1, 1, 0, 0]
    curves = [[3, 2, 1], [5, np.inf, np.inf], [9, 7, np.nan], [8, np.nan, np.nan], [np.nan] * 3, [np.nan] * 3]
    result = result_of(space, columns, curves, seeds=2, first_run=6)
    ended, stopped = population.optuna_trials(space, result)
    assert (ended.state.name, ended.value, ended.user_attrs) == ("COMPLETE", 3, {"run": 6, "diverged": True})
    # Positions of options that Optuna does not hold, or does not tell apart.
    assert ended.params == {"rate": np.float32(0.1), "size": 0, "kind": "a", "alike": 2}
    assert (stopped.state.name, stopped.value, stopped.intermediate_values) == ("PRUNED", 7.5, {2: 7.5})
    assert stopped.params == {"rate": 0.5, "size": 1, "kind": None, "alike": 1}
    never = result_of(space, columns, np.full((6, 1), np.inf), mode="max")
    assert [trial.value for trial in population.optuna_trials(space, never)] == [-np.inf] * 6
    with pytest.raises(ValueError, match="space has 'width'; the result has rate, size, kind, alike, other"):
        population.optuna_trials({"width": uniform(0, 1)}, result)


X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
DATA = {"train": {"x": X, "y": X @ np.float32([1, -2, 3])}, "epochs": 2, "batch_size": 8, "progress": False}
SPACE = {"rate": log_uniform(1e-3, 10), "penalty": choice(jnp.abs, jnp.square, static=True), "start": uniform(-1, 1)}
SPACE |= {"own": lambda key: jax.random.normal(key, dtype=jnp.float32), "constant": 0.5}


def init(hp, key, batch):
    return hp["start"] + hp["constant"] * hp["own"] * jax.random.normal(key, (3,), jnp.float32)


def step(hp, state, batch, key):
    def loss(state):
        return hp["penalty"](batch["x"] @ state - batch["y"]).mean()

    value, gradient = jax.value_and_grad(loss)(state)
    return state - hp["rate"] * gradient, {"loss": value, "score": -value}


def fit(space=SPACE, sampler=None, **options):
    return population.fit(Task(init, step, lambda hp, state, batch: {}), space, sampler=sampler, **DATA | options)


def test_a_stopped_guided_search_of_ones_own_ends_as_if_undisturbed(tmp_path):
    class Stop:
        asked = 0

        def __call__(self):  # after every epoch; the third is in the middle of the second generation
            self.asked += 1
            return int(self.asked == 3)

    how = {"num_runs": 10, "runs_in_memory": 3, "seeds": 2, "rank_by": "train_score", "mode": "max"}
    guided = how | {"sampler": population.tpe(["rate", "penalty"])}
    result = fit(**guided)
    assert fit(**guided, workdir=tmp_path, stop=Stop()).stopped
    again = fit(**guided, workdir=tmp_path)
    random = fit(**how)
    for name, values in result.hyperparameters.items():
        np.testing.assert_array_equal(again.hyperparameters[name], values)
        np.testing.assert_array_equal(values[::2], values[1::2])  # two seeds
        same = (random.hyperparameters[name] == values).tolist()
        # The first generation is random search's, and so is what is not chosen.
        assert same[:4] == [True] * 4 and (all(same) or name in ("rate", "penalty"))
    assert not np.isin(result.hyperparameters["rate"][4:], random.hyperparameters["rate"]).any()
    for name, curve in result.curves.items():
        np.testing.assert_array_equal(again.curves[name], curve)


@pytest.mark.parametrize(
    ("changes", "names", "runs_in_memory", "message"),
    [
        ({"penalty": grid(jnp.abs, jnp.square, static=True)}, None, 2, r"space\['penalty'\] is a grid, .* a choice"),
        ({}, None, None, "runs_in_memory must be below num_runs, 4: "),
        ({}, ["rate", "width"], 2, "names has 'width'; tpe can choose rate, penalty, start"),
        ({}, ["constant"], 2, "names has 'constant'; tpe can choose rate, penalty, start"),
        ({}, [], 2, "there is nothing to choose"),
    ],
)
def test_mistakes_are_explained(changes, names, runs_in_memory, message):
    with pytest.raises(ValueError, match=message):
        fit(SPACE | changes, population.tpe(names), num_runs=4, runs_in_memory=runs_in_memory)


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'highway-jax[optuna]'")):
        population.tpe()
