import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from highway_jax import MLP, ConvNet, data, optim, parallel, search, training
from highway_jax.data import shuffled_batches
from highway_jax.training import Hyperparameters, Recipe

DIGITS = data.load("digits")
BATCHES = shuffled_batches(DIGITS.train, jax.random.key(7), 50)


def network(hp, block="highway"):
    return MLP(depth=5, width=20, block=block, activation=hp.activation, transform_bias=hp.transform_bias)


RECIPE = Recipe(network, functools.partial(data.rescale, max_value=16))
HP = Hyperparameters(*map(jnp.float32, (0.05, 0.9, 0.95)), jnp.int32(0), jnp.float32(-2.0))
EPOCH = functools.partial(training.train_epoch, RECIPE)


def start(seed, learning_rate=0.05, activation=0):
    hp = Hyperparameters(*map(jnp.float32, (learning_rate, 0.9, 0.95)), jnp.int32(activation), jnp.float32(-2.0))
    return training.init(RECIPE, hp, jax.random.key(seed), DIGITS.train.images)


def population(count=4):
    runs = [start(seed, 0.02 * (seed + 1), seed % 2) for seed in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)


def assert_close(a, b, rtol=1e-4):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-5), a, b)


ALONE = [jax.jit(EPOCH)(search.take_run(population(), i), BATCHES) for i in range(4)]


@pytest.mark.parametrize(
    "transform", ["vmap", "jit(vmap)", "lax.map", "pmap", "shard_map", "jit(shardings)", "map_runs"]
)
def test_a_run_in_a_population_is_the_run_alone_under_every_transformation(transform, request):
    runs = population()
    if transform == "pmap":  # one run a device
        request.getfixturevalue("two_devices")
        new, losses = jax.pmap(EPOCH, in_axes=(0, None))(jax.tree.map(lambda leaf: leaf[:2], runs), BATCHES)
    else:
        spec = PartitionSpec("runs")
        mesh = parallel.runs_mesh()
        split, whole, batch = (NamedSharding(mesh, s) for s in (spec, PartitionSpec(), PartitionSpec(None, "data")))
        mapped = jax.vmap(EPOCH, in_axes=(0, None))
        new, losses = {
            "vmap": mapped,
            "jit(vmap)": jax.jit(mapped),
            "lax.map": lambda runs, batches: jax.lax.map(lambda run: EPOCH(run, batches), runs, batch_size=3),
            "shard_map": jax.shard_map(mapped, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec),
            "jit(shardings)": jax.jit(mapped, in_shardings=(split, batch), out_shardings=(split, whole)),
            "map_runs": jax.jit(parallel.map_runs(EPOCH, mesh, runs_per_batch=1)),
        }[transform](runs, BATCHES)
    for index in range(len(losses)):
        assert_close((search.take_run(new.params, index), losses[index]), (ALONE[index][0].params, ALONE[index][1]))


def test_training_learns():
    run = start(0)
    losses = []
    for _ in range(12):
        run, loss = jax.jit(EPOCH)(run, BATCHES)
        losses.append(float(loss))
    assert losses[-1] < 0.3 < 1 < losses[0]
    assert run.epoch == 12
    metrics = training.evaluate(RECIPE, run, DIGITS.test, batch_size=100)
    assert metrics["accuracy"] > 0.9


def test_evaluate_is_the_mean_over_all_examples_whatever_the_batch_size():
    run, _ = ALONE[0]
    outputs = np.asarray(training.logits(RECIPE, run, DIGITS.test.images), np.float64)
    p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    labels = DIGITS.test.labels
    for batch_size in (1, 100, 297, 1000):
        metrics = training.evaluate(RECIPE, run, DIGITS.test, batch_size)
        assert np.isclose(metrics["loss"], -np.log(p[np.arange(297), labels]).mean(), rtol=1e-4)
        assert np.isclose(metrics["accuracy"], (p.argmax(axis=1) == labels).mean())


def test_a_diverged_run_leaves_the_others_untouched():
    runs = population()
    rates = runs.hyperparameters.learning_rate.at[1].set(1e38)
    wild = runs.replace(hyperparameters=runs.hyperparameters.replace(learning_rate=rates))
    epoch = jax.jit(jax.vmap(EPOCH, in_axes=(0, None)))
    (calm_runs, calm), (wild_runs, losses) = epoch(runs, BATCHES), epoch(wild, BATCHES)
    assert not np.isfinite(losses[1])
    others = np.array([0, 2, 3])
    np.testing.assert_array_equal(losses[others], calm[others])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[others], b[others]), wild_runs.params, calm_runs.params)
    assert np.isnan(training.evaluate(RECIPE, search.take_run(wild_runs, 1), DIGITS.test)["accuracy"])


def test_sgd_is_momentum_with_a_rate_that_decays_once_an_epoch():
    rate, momentum, decay, steps_per_epoch = 0.1, 0.8, 0.5, 3
    gradients = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)

    def train(rate, momentum, decay):
        hp = Hyperparameters(rate, momentum, decay, 0, 0.0)
        params, state = jnp.zeros(4), RECIPE.optimizer(hp, 0).init(jnp.zeros(4))
        for step, gradient in enumerate(gradients):
            updates, state = RECIPE.optimizer(hp, step // steps_per_epoch).update(gradient, state)
            params += updates
        return params

    expected, velocity = np.zeros(4), np.zeros(4)
    for step, gradient in enumerate(gradients):
        velocity = momentum * velocity + gradient
        expected -= rate * decay ** (step // steps_per_epoch) * velocity
    np.testing.assert_allclose(jax.jit(train)(rate, momentum, decay), expected, rtol=1e-5)


def test_nesterov_is_caffes_update():
    rates, momentum, decay = (0.1, 0.01), 0.9, 0.01
    rng = np.random.default_rng(0)
    shapes = {"layer1": {"h": {"kernel": (3, 2), "bias": (2,)}}, "output": {"kernel": (2, 3), "bias": (3,)}}

    def draw():
        return jax.tree.map(lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda x: isinstance(x, tuple))

    multipliers = {"layer1": {"h": {"kernel": (1, 1), "bias": (2, 0)}}, "output": {"kernel": (1, 10), "bias": (2, 0)}}
    start, gradients = draw(), [draw() for _ in range(6)]

    def caffe(multiplier, weights, *gradients):
        rate_multiplier, decay_multiplier = multiplier
        history = np.zeros_like(weights)
        for step, gradient in enumerate(gradients):
            rate = rates[step // 3] * rate_multiplier
            before = history
            history = momentum * history + rate * (gradient + decay * decay_multiplier * weights)
            weights = weights - ((1 + momentum) * history - momentum * before)
        return weights

    def is_pair(node):
        return isinstance(node, tuple)

    expected = jax.tree.map(caffe, multipliers, start, *gradients, is_leaf=is_pair)
    params = jax.tree.map(jnp.float32, start)
    optimizer = functools.partial(optim.nesterov, momentum=momentum, weight_decay=decay)
    state = optimizer(rates[0]).init(params)
    update = jax.jit(lambda rate, *args: optimizer(rate).update(*args))
    for epoch in (0, 1):
        rate = optim.step_decay(rates[0], 0.1, epoch, (1, 5))
        for gradient in gradients[3 * epoch : 3 * epoch + 3]:
            updates, state = update(rate, gradient, state, params)
            params = jax.tree.map(jnp.add, params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected)


def squared(run, inputs, logits, cross_entropy):
    return jnp.square(logits).mean()


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize(
    "objective",
    [squared, jax.jit(squared), lambda run, inputs, logits, loss: jax.lax.cond(True, lambda: 0.0, lambda: 1.0)],
)
def test_an_objective_without_the_loss_that_is_reported_is_refused(objective, epochs):
    recipe = dataclasses.replace(RECIPE, objective=objective)
    with pytest.raises(ValueError, match="objective does not depend on the cross_entropy") as error:
        if epochs:
            training.train_epoch(recipe, start(0), BATCHES)
        else:
            jax.jit(functools.partial(training.init, recipe))(HP, jax.random.key(0), DIGITS.train.images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "objective",
    [
        lambda run, inputs, logits, loss: loss + 0.1 * squared(run, inputs, logits, loss),
        lambda run, inputs, logits, loss: jax.lax.cond(run.epoch < 1, lambda: loss, lambda: jnp.square(logits).mean()),
    ],
)
def test_an_objective_may_have_more_than_the_loss_that_is_reported(objective):
    run = training.init(dataclasses.replace(RECIPE, objective=objective), HP, jax.random.key(0), DIGITS.train.images)
    epoch = jax.jit(functools.partial(training.train_epoch, dataclasses.replace(RECIPE, objective=objective)))
    assert np.isfinite(epoch(run, BATCHES)[1])


class Regression(nn.Module):
    shape: tuple

    @nn.compact
    def __call__(self, x):
        return nn.Dense(int(np.prod(self.shape)))(x.reshape(len(x), -1)).reshape(-1, *self.shape)


@pytest.mark.parametrize("shape", [(1,), (), (2, 3)])
def test_a_network_that_is_no_classifier_is_refused(shape):
    recipe = dataclasses.replace(RECIPE, network=lambda hp: Regression(shape))
    run = dataclasses.replace(start(0), params=Regression(shape).init(jax.random.key(0), jnp.ones((1, 64)))["params"])
    calls = [
        lambda: training.init(recipe, HP, jax.random.key(0), DIGITS.train.images),
        lambda: training.train_epoch(recipe, run.replace(opt_state=recipe.optimizer(HP, 0).init(run.params)), BATCHES),
        lambda: training.evaluate(recipe, run, DIGITS.test),
        lambda: search.init_population(
            recipe, search.sample_population(search.SearchSpace(), 0, 2), 0, DIGITS.train.images, parallel.runs_mesh()
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"outputs of shape \(.*logits of shape \(batch, classes\)") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "net",
    [
        MLP(depth=3, width=20, dtype=jnp.bfloat16),
        MLP(depth=3, width=20, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
        ConvNet(("conv 4 3x3", "highway 3x3"), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
    ],
    ids=["MLP", "MLP's parameters", "ConvNet's parameters"],
)
def test_losses_are_computed_in_float32_whatever_the_networks_dtype(net):
    recipe = dataclasses.replace(RECIPE, network=lambda hp: net)
    run = training.init(recipe, HP, jax.random.key(0), DIGITS.train.images)
    outputs = np.float64(jax.jit(functools.partial(training.logits, recipe))(run, DIGITS.test.images))
    expected = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(297), DIGITS.test.labels]
    found = jax.jit(functools.partial(training.evaluate, recipe))(run, DIGITS.test)
    np.testing.assert_allclose(found["loss"], expected.mean(), rtol=1e-3)
    batch = jax.tree.map(lambda leaf: leaf[:50], DIGITS.test)
    _, loss = jax.jit(functools.partial(training.train_step, recipe))(run, batch, jax.random.key(0))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected[:50].mean(), rtol=1e-2)
    assert float(loss) != float(jnp.bfloat16(loss))  # digits that bfloat16 does not have
