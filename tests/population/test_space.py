import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from highway_jax import population
from highway_jax.functional.activations import ACTIVATIONS
from highway_jax.population import choice, grid, log_uniform, uniform
from highway_jax.population.space import Hyperparameters, Space

KEY = jax.random.key(3, impl="threefry2x32")
RUNS = np.arange(50)
ends = st.tuples(st.floats(1e-5, 10), st.floats(1e-5, 10)).map(sorted)


@settings(max_examples=5)
@given(ends, st.integers(0, 1000))
def test_draws_stay_in_their_ranges_and_follow_from_key_and_number_alone(pair, first):
    space = Space({"a": log_uniform(*pair), "b": uniform(*pair), "c": choice(1, 2, 5)})
    drawn = space.draw(KEY, first + RUNS)
    for name in "ab":
        assert drawn[name].dtype == np.float32
        assert (np.float32(pair[0]) <= drawn[name]).all()
        assert (drawn[name] <= np.float32(pair[1])).all()
    assert set(drawn["c"]) <= {0, 1, 2}
    longer = Space({**space.entries, "d": uniform(0, 1)}).draw(KEY, np.arange(first + 10, first + 20))
    for name in "abc":
        np.testing.assert_array_equal(longer[name], drawn[name][10:20])


def test_draws_are_distributed_as_they_say():
    space = Space({"a": log_uniform(1e-3, 1), "b": uniform(-10, -1), "c": choice(0.1, 5)})
    drawn = space.draw(KEY, np.arange(2000))
    quartiles = [0.25, 0.5, 0.75]
    np.testing.assert_allclose(np.quantile(np.log10(drawn["a"]), quartiles), [-2.25, -1.5, -0.75], atol=0.15)
    np.testing.assert_allclose(np.quantile(drawn["b"], quartiles), [-7.75, -5.5, -3.25], atol=0.4)
    assert 0.45 < drawn["c"].mean() < 0.55
    assert abs(np.corrcoef(drawn["a"], drawn["b"])[0, 1]) < 0.06  # each has a key of its own


@settings(max_examples=10)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 40), st.integers(1, 30))
def test_a_grid_has_every_combination_in_turn_each_with_one_draw_of_the_rest(sizes, first, count):
    grids = {f"g{i}": grid(*range(10, 10 + size)) for i, size in enumerate(sizes)}
    space = Space({"a": uniform(0, 1), **grids, "b": choice(0.5, 2)})
    drawn = space.draw(KEY, np.arange(first, first + count))
    combinations = list(itertools.product(*map(range, sizes)))
    assert space.points == len(combinations)
    plain = Space({"a": uniform(0, 1), **dict.fromkeys(grids, 0), "b": choice(0.5, 2)}).draw(KEY, RUNS)
    for row, configuration in enumerate(range(first, first + count)):
        point, place = divmod(configuration, space.points)
        assert tuple(drawn[name][row] for name in grids) == combinations[place]
        assert (drawn["a"][row], drawn["b"][row]) == (plain["a"][point], plain["b"][point])


@pytest.mark.parametrize(
    "options",
    [
        (np.ones(1), np.ones(3)),
        (1, 1.0),
        (1.0, 1 + 1e-11),
        (2**24, 2**24 + 1, 0.5),
        ("a", "a "),
        (False, 0.5),
        (None, 0),
    ],
    ids=str,
)
def test_a_static_option_is_itself_in_the_table_and_in_a_replay(options):
    def task(hp):
        value = jnp.float32(next(i for i, option in enumerate(options) if option is hp["option"]))
        return {"loss": value}

    options_of = {"train": {"x": np.ones(4)}, "num_runs": len(options), "epochs": 1, "batch_size": 4, "progress": False}
    own = population.Task(lambda hp, k, b: jnp.zeros(()), lambda hp, s, b, k: (s, task(hp)), lambda hp, s, b: task(hp))
    result = population.fit(own, {"option": grid(*options, static=True)}, **options_of)
    assert result.curves["train_loss"][:, 0].tolist() == list(range(len(options)))
    for number, option in enumerate(options):
        shown = result.hyperparameters["option"][number]
        assert np.array_equal(shown, option) or shown is option
        assert population.replay(result, number, progress=False).curves["train_loss"].item() == number


def test_a_task_gets_numbers_indices_or_the_options_themselves():
    rates = np.linspace(1, 2, 4)
    space = Space(
        {
            "number": choice(32, 64), "activation": choice("tanh"), "name": choice("adam", "sgd", static=True),
            "flag": choice(True, False), "width": choice(8, 16, static=True), "head": choice(None, "mlp", static=True),
            "given": rates, "constant": "SAME", "own": lambda key: jax.random.normal(key),
        }
    )  # fmt: skip
    columns = space.draw(KEY, np.arange(4))
    traced, readable = space.traced(columns), space.readable(columns, 4)
    assert traced.keys() == {"number", "activation", "flag", "given", "own"}
    np.testing.assert_array_equal(traced["number"], readable["number"])
    assert (traced["activation"] == ACTIVATIONS.index("tanh")).all()
    assert readable["activation"].tolist() == ["tanh"] * 4
    assert traced["flag"].dtype == bool
    np.testing.assert_array_equal(traced["given"], np.float32(rates))
    assert readable["constant"].tolist() == ["SAME"] * 4
    for row, group in enumerate(space.groups(columns, np.arange(4))):
        assert space.static(group) == {
            **{name: readable[name][row] for name in ("name", "width", "head")}, "constant": "SAME"
        }  # fmt: skip
    again = space.positions(readable)
    assert again.keys() == columns.keys()
    for name, column in columns.items():
        np.testing.assert_array_equal(again[name], column)


@pytest.mark.parametrize(
    ("use", "read"),
    [
        (lambda hp: hp["a"], {"a"}),
        (lambda hp: [hp.get("a"), hp.pop("b")], {"a", "b"}),
        (lambda hp: "a" in hp, {"a"}),
        (lambda hp: hp.setdefault("b", 3), {"b"}),
        *((use, {"a", "b"}) for use in (lambda hp: dict(**hp), lambda hp: hp | {"c": 1}, dict, dict.copy)),
        *((use, {"a", "b"}) for use in (lambda hp: hp.items(), lambda hp: hp.values(), jax.tree.leaves)),
    ],
)
def test_hyperparameters_note_what_is_read(use, read):
    hp = Hyperparameters({"a": 1.0, "b": "text"})
    use(hp)
    assert hp.read == read
    with pytest.raises(AttributeError, match=r"hp has no attribute 'a'; a hyperparameter is hp\['a'\]"):
        hp.a  # noqa: B018


def test_a_function_that_is_no_distribution_is_told_by_its_name():
    with pytest.raises(TypeError, match=r"space\['f'\] is called with a random key, as a distribution, and fails: "):
        Space({"f": jax.nn.relu}).draw(KEY, RUNS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: log_uniform(0, 1), r"log_uniform\(0, 1\): both ends must be above 0"),
        (lambda: log_uniform(1e-50, 1), "above 0"),  # 0 in float32
        (lambda: uniform(1, 0), r"uniform\(1, 0\) is inverted"),
        (lambda: uniform(0, float("nan")), "finite in float32"),
        (lambda: uniform(-3e38, 3e38), "finite in float32"),
        (lambda: uniform("0", 1), "must be numbers"),
        (lambda: choice(), "no options"),
        (lambda: choice(1, 2, 1), "option 1 is given twice"),
        (lambda: grid(), r"grid\(\) has no options"),
        (lambda: choice([1, 2]), r"choice\(\[1, 2\]\) has one option; give the options one by one"),
        (lambda: grid(1, 1), "grid: the option 1 is given twice"),
        (lambda: choice(2**31, 1), "choice: the option 2147483648 is not a 32-bit integer"),
        (lambda: Space({"lr": [0.1, 0.2]}), r"space\['lr'\] is a list; choice\(\*\[0.1, 0.2\]\)"),
        (lambda: Space({"lr": range(4)}), r"space\['lr'\] is a range; choice\(\*range\(0, 4\)\)"),
        (lambda: Space([("lr", uniform(0, 1))]), "must be a mapping"),
        (lambda: Space({"lr": np.ones(3)}).draw(KEY, RUNS), r"shape \(3,\); it must have a value for each of 50"),
        (lambda: Space({"lr": np.array(["a"] * 50)}).draw(KEY, RUNS), "must be of numbers"),
        (
            lambda: Space({"n": np.full(50, 3 * 10**9)}).draw(KEY, RUNS),
            r"space\['n'\] has 3000000000, which does not fit into int32",
        ),
        (
            lambda: Space({"n": np.full(50, 1e300)}).draw(KEY, RUNS),
            r"space\['n'\] has 1e\+300, which does not fit into float32",
        ),
        (lambda: Space({"n": np.ma.masked_less(np.arange(50), 9)}).draw(KEY, RUNS), r"space\['n'\] is a masked array"),
        (lambda: Space({"n": np.int64(2**40)}), r"space\['n'\] has 1099511627776, which does not fit into int32"),
        (
            lambda: Space({"n": uniform(0, 1)}).positions({"n": [2**31]}),
            "n has 2147483648, which does not fit into int32",
        ),
        (lambda: Space({"lr": lambda key: jax.random.normal(key, (3,))}).draw(KEY, RUNS), "it must draw a scalar"),
        (lambda: choice("adam", "relu"), r"'adam', 'relu' .* names of activations \('relu', 'tanh'\); static=True"),
        (lambda: grid(jax.nn.gelu, jax.nn.silu), "grid: the options .*gelu.* finite numbers, True and False, or names"),
        (lambda: choice(0.5, True), "choice: the options 0.5, True are given to the task as numbers"),
        (lambda: choice(1, float("inf")), "must be finite numbers"),
        (lambda: Space({"a": choice(1, 2)}).positions({"a": [3]}), "a is 3; it must be one of 1, 2"),
        (lambda: Space({"a": choice(1)}).positions({"b": ["z"]}), "no hyperparameter 'b'; the space has a"),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
