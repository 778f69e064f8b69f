"""What computes the same is compiled once; what does not is never taken for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from highway_jax import population
from highway_jax.population import Task, uniform
from highway_jax.population.tracing import Traced

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
        return Traced(None, jax.make_jaxpr(scanned(values))(1.0)).digest()

    assert digest(np.full(3, 1, np.float32)) == digest(np.full(3, 1, np.float32)) != digest(np.full(3, 2, np.float32))
    both = [Traced(None, jax.make_jaxpr(called(lambda: np.float32(1)))(1.0)) for _ in range(2)]
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
