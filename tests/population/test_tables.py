"""Results as files: what `fit` writes beside its checkpoints, and what `load` makes of it."""

import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from highway_jax import population
from highway_jax.population import Result, Task, choice, grid, log_uniform, tables

X = {"x": np.arange(12, dtype=np.float32)}
SPACE = {
    "rate": log_uniform(1e-3, 1e3),
    "how": choice(jnp.square, jnp.abs, static=True),
    "width": grid(3, 5),
    "depth": choice(1, 2),
    "constant": 0.1,
    "name": choice("a", "b, \"c\"\n", static=True),
}  # fmt: skip


def step(hp, state, batch, key):
    loss = hp["how"](state - batch["x"].mean()) + hp["width"] * hp["depth"] * hp["constant"] + len(hp["name"])
    return state * (1 + hp["rate"]), {"loss": loss}


TASK = Task(
    init=lambda hp, key, batch: jnp.float32(3e38),
    step=step,
    evaluate=lambda hp, state, batch: {"size": state},
)


def fit(**options):
    arguments = {"num_runs": 8, "seeds": 2, "epochs": 4, "batch_size": 4, "rank_by": "v_size", "mode": "max"}
    return population.fit(TASK, SPACE, train=X, evaluate={"v": X}, progress=False, **arguments, **options)


def assert_same(loaded, result):
    """Whether tables gave back all that they have: every number to the last bit, options as a table shows them."""
    facts = ("rank_by", "mode", "epochs", "seeds", "seconds", "finished", "num_runs")
    assert [getattr(loaded, name) for name in facts] == [getattr(result, name) for name in facts]
    longest = result.ranking.epochs.max()
    assert loaded.curves.keys() == result.curves.keys()
    for name, curve in result.curves.items():
        np.testing.assert_array_equal(loaded.curves[name], curve[:, :longest])
        assert loaded.curves[name].dtype == np.float32
    for by in "run", "configuration":
        pandas.testing.assert_frame_equal(loaded.table(by), result.table(by), check_dtype=False)


def test_what_fit_writes_is_loaded_as_it_was_finished_or_not(tmp_path):
    result = fit(workdir=tmp_path, stop=lambda: 15)
    assert not result.finished and result.ranking.diverged.any()
    loaded = population.load(tmp_path)
    assert_same(loaded, result)
    with pytest.raises(ValueError, match="a loaded result has no states"):
        loaded.best  # noqa: B018
    with pytest.raises(ValueError, match="result was loaded, without its task"):
        population.replay(loaded, run=0)
    finished = fit(workdir=tmp_path)
    assert_same(population.load(tmp_path), finished)
    assert population.load(tmp_path).plot()


FLOATS = st.floats(width=32)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), runs=st.integers(1, 4), epochs=st.integers(1, 4), first=st.integers(0, 10**6))
def test_numbers_come_back_to_the_last_bit(tmp_path, data, runs, epochs, first):
    loss = data.draw(arrays(np.float32, (runs, epochs), elements=FLOATS))
    loss[:, 0] = np.where(np.isnan(loss[:, 0]), np.inf, loss[:, 0])  # all have begun
    rate = data.draw(arrays(np.float32, runs, elements=FLOATS))
    result = Result(np.arange(first, first + runs), {"rate": rate}, {"train_loss": loss}, "train_loss", "min", epochs)
    population.save(result, tmp_path)
    loaded = population.load(tmp_path)
    assert_same(loaded, result)
    np.testing.assert_array_equal(loaded.hyperparameters["rate"], rate)


def replaced(name, value):
    facts = {
        "rank_by": '"train_loss"',
        "mode": '"min"',
        "epochs": "2",
        "seeds": "1",
        "seconds": "0",
        "finished": "true",
    }
    facts |= {"hyperparameters": "{}", name: value}
    return "{" + ", ".join(f'"{key}": {text}' for key, text in facts.items()) + "}"


DAMAGE = {
    "search.json": (
        "", "{", "[]", '{"rank_by": 3}', '"mode": "up"', "\0", replaced("seconds", "NaN"), replaced("seeds", "0"),
    ),
    "runs.csv": ("", "run\n", "run,rate\n1,x\n", "run,rate\n1.5,2\n", "run,rate\n1,2", "run,rate\n1,2,3\n", "\xff\n"),
    "curves.csv": (
        "run,epoch,train_loss\n",
        "run,epoch,train_loss\n7,1,2\n",
        "run,epoch,train_loss\n0,0,2\n",
        "run,epoch,train_loss\n0,1000000000,2\n",
        "run,epoch,train_loss\n0,1,2\n0,1,2\n",
        "run,epoch\n0,1\n",
        "run,epoch,train_loss\n0,1,0x1\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts])
def test_a_damaged_file_is_named(tmp_path, name, text):
    loss = np.float32([[2, 1]])
    result = Result(np.arange(1), {"rate": np.float32([2])}, {"train_loss": loss}, "train_loss", "min", 2)
    population.save(result, tmp_path)
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"{name} is damaged: "):
        population.load(tmp_path)


def test_tables_of_something_else_are_not_overwritten(tmp_path):
    tmp_path = tmp_path / "not/there/yet"
    population.save(fit(), tmp_path)
    before = (tmp_path / "runs.csv").read_bytes()
    with pytest.raises(population.WorkdirError, match="and no checkpoint, so it is not the workdir"):
        fit(workdir=tmp_path)
    assert (tmp_path / "runs.csv").read_bytes() == before


def test_tables_that_cannot_be_written_do_not_end_the_work(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "save", fail)
    with pytest.warns(population.WorkdirWarning, match="tables cannot be written: .*No space left"):
        assert fit(workdir=tmp_path).finished
