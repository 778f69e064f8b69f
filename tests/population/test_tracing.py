"""What computes the same is compiled once; what does not is never taken for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from highway_jax import population
from highway_jax.population import Task, uniform
from highway_jax.population.tracing import Traced, _Same, _text

DATA = {"x": np.ones((8, 2), np.float32)}


def task_of(scale):
    """Trains nothing; its loss is `scale` of the hyperparameter, a function or an array, made anew at every call."""

    def loss(hp):
        return (scale(hp["a"]) if callable(scale) else scale * hp["a"]).sum()

    return Task(
        lambda hp, key, batch: jnp.zeros(()), lambda hp, state, batch, key: (state, {"loss": loss(hp)}),
        lambda hp, state, batch: {"loss": loss(hp)},
    )  # fmt: skip


def fit(scale, **options):
    options = {"num_runs": 4, "epochs": 1, "batch_size": 4, "progress": False, **options}
    return population.fit(task_of(scale), {"a": uniform(1, 2)}, train=DATA, evaluate={"valid": DATA}, **options)


def compiled(call):
    """How many programs JAX compiles meanwhile."""
    counted = []
    listener = lambda event, seconds, **_: counted.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return sum("backend_compile" in event for event in counted)


def test_an_equal_task_compiles_nothing_even_for_another_seed_and_more_epochs(tmp_path):
    assert compiled(lambda: fit(jnp.arange(3.0))) > 0
    assert compiled(lambda: fit(jnp.arange(3.0), seed=5, epochs=2, workdir=tmp_path / "work")) == 0


def scanned(values):
    """A loss whose constants stand in a jaxpr inside its own."""
    body = jax.jit(lambda total, _: (total + jnp.dot(values, values), None))
    return lambda a: jax.lax.scan(body, a, length=2)[0]


def shifted(key, a):
    return a + jax.random.uniform(key)


def called(function):
    return lambda a: a + jax.pure_callback(function, jax.ShapeDtypeStruct((), jnp.float32))


@pytest.mark.parametrize(
    "scale",
    [
        lambda value: jnp.full(2000, value),  # too long to be written whole
        lambda value: np.float32(value),
        lambda value: lambda a: a + jax.random.uniform(jax.random.key(int(value))),
        lambda value: functools.partial(shifted, jax.random.key(int(value))),
        lambda value: scanned(jnp.full(3, value)),
        lambda value: scanned(np.full(3, value, np.float32)),
        lambda value: called(lambda: np.float32(value)),
    ],
    ids=["array", "number", "seed", "key", "scan", "scan numpy", "callback"],
)  # fmt: skip
def test_whatever_a_task_closes_over_makes_it_another(scale):
    first, second = (fit(scale(value)).curves["train_loss"] for value in (1.0, 2.0))
    assert (first != second).all()
    np.testing.assert_array_equal(fit(scale(1.0)).curves["train_loss"], first)


def test_a_global_that_a_task_reads_may_change_between_two_searches():
    factor = 1.0
    task = task_of(lambda a: a * factor)
    options = {"train": DATA, "num_runs": 2, "epochs": 1, "batch_size": 4, "progress": False}
    before = population.fit(task, {"a": uniform(1, 2)}, **options).curves["train_loss"]
    factor = 3.0
    np.testing.assert_array_equal(
        population.fit(task, {"a": uniform(1, 2)}, **options).curves["train_loss"], 3 * before
    )


def test_the_digest_is_the_same_in_every_process_and_sees_constants_of_inner_jaxprs():
    def digest(values):
        return Traced(scanned(values), 1.0).digest()

    assert digest(np.full(3, 1, np.float32)) == digest(np.full(3, 1, np.float32)) != digest(np.full(3, 2, np.float32))
    both = [Traced(called(lambda: np.float32(1)), 1.0) for _ in range(2)]
    assert both[0] != both[1]  # their texts name an address
    assert both[0].digest() == both[1].digest()


def test_a_task_may_print():
    seen = []

    def loss(a):
        jax.debug.callback(lambda value: seen.append(float(value)), a)
        return a

    result = fit(loss)
    jax.effects_barrier()
    assert set(np.float32(seen)) == set(result.hyperparameters["a"])


def test_names_belong_to_what_is_compiled():
    """Jaxprs hold none."""

    def fit_named(hp, state, metric, key):
        task = Task(
            lambda values, key, batch: {state: jnp.zeros(())},
            lambda values, states, batch, key: ({state: states[state]}, {"loss": values[hp], metric: -batch[key_of]}),
            lambda values, states, batch: {"loss": values[hp], metric: states[state]},
        )
        key_of = key
        options = {"num_runs": 2, "epochs": 1, "batch_size": 4, "progress": False, "keep": "all"}
        return population.fit(task, {hp: uniform(1, 2)}, train={key: np.ones(8, np.float32)}, **options)

    for names in ("a", "w", "mae", "x"), ("b", "w", "mae", "x"), ("b", "v", "mae", "x"), ("b", "v", "z", "y"):
        result = fit_named(*names)
        assert set(result.hyperparameters) == {names[0]}
        assert set(result.run(0).state) == {names[1]}
        np.testing.assert_array_equal(result.curves["train_loss"][:, 0], result.hyperparameters[names[0]])
        np.testing.assert_array_equal(result.curves[f"train_{names[2]}"], -1)


def test_what_a_closure_holds_may_change_before_another_size_is_compiled():
    first, second = np.ones(2), np.ones(2)
    fit(lambda a: a * first[0], num_runs=4)
    first *= 3
    assert fit(lambda a: a * second[0], num_runs=6).curves["train_loss"].max() < 2
    drawn = [uniform(0, 1)]
    space = {"a": lambda key: drawn[0](key)}
    options = {"train": DATA, "epochs": 1, "batch_size": 4, "progress": False}
    population.fit(task_of(1.0), space, num_runs=2, **options)
    drawn[0] = uniform(5, 6)
    assert population.fit(task_of(1.0), space, num_runs=3, **options).curves["train_loss"].min() >= 5


def test_the_last_smaller_batch_is_compared_too():
    def task(wrong):
        def evaluate(hp, state, batch):
            return {"loss": hp["a"] * (wrong if len(batch["x"]) == 2 else 1.0)}

        return task_of(1.0)._replace(evaluate=evaluate)

    options = {"train": DATA, "evaluate": {"valid": DATA}, "num_runs": 2, "epochs": 1, "batch_size": 4}
    curves = [
        population.fit(task(w), {"a": uniform(1, 2)}, **options, evaluate_batch_size=3, progress=False).curves
        for w in (1.0, 2.0)
    ]
    np.testing.assert_allclose(curves[1]["valid_loss"], curves[0]["valid_loss"] * 10 / 8, rtol=1e-6)


def test_numbers_are_compared_to_the_last_bit_whatever_numpy_prints():
    with np.printoptions(precision=2):
        first, second = (fit(lambda a, w=w: a * w).curves["train_loss"] for w in (0.1, 0.1004))
    assert (first != second).all()
    digests = []
    for precision in 2, 8:
        with np.printoptions(precision=precision):
            digests.append(Traced(lambda a: a * 0.12345 + jnp.arange(3.0), 1.0).digest())
    assert digests[0] == digests[1]
    assert Traced(lambda a: a * 0.0, 1.0) != Traced(lambda a: a * -0.0, 1.0)


def test_objects_are_compared_as_python_compares_them_and_not_by_their_names():
    class Simulator:
        def __init__(self, value):
            self.value = value

        def __call__(self):
            return np.float32(self.value)

        def __repr__(self):
            return "Simulator()"

    first, second = (fit(called(Simulator(value))).curves["train_loss"] for value in (1, 2))
    assert (first + 1 == second).all()


def test_settings_that_an_equation_carries_count():
    def loss(a):
        return a + jax.random.uniform(jax.random.key(0), (3,))

    losses = []
    for partitionable in True, False:
        with jax.threefry_partitionable(partitionable):
            losses.append(fit(loss).curves["train_loss"])
    assert (losses[0] != losses[1]).all()


def test_constants_of_any_dtype_can_be_closed_over(tmp_path):
    small = jnp.asarray([1.0, 2.0], jnp.bfloat16)
    fit(lambda a: a + small, workdir=tmp_path)
    assert fit(lambda a: a + small, workdir=tmp_path).finished
    with pytest.raises(population.WorkdirError):
        fit(lambda a: a + 2 * small, workdir=tmp_path)


def test_sets_are_written_in_one_order():
    """Python's own depends on how strings are hashed in a process."""
    one, other = (functools.partial(jnp.sum, axis=frozenset(order)) for order in ([0, 8], [8, 0]))
    assert repr(one) != repr(other)
    assert _text(_Same(one)) == _text(_Same(other))
