import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from highway_jax.training import Hyperparameters, Recipe

from highway_jax import ConvNet, data, optim, training
from highway_jax.distillation import Student, Teacher, distillation_loss, hint_loss, taught

DIGITS = data.load("digits")
INPUTS = DIGITS.train["x"][:1] / np.float32(16)
NETWORK = ConvNet(("conv 4 3x3", "maxout 4 3x3", "maxpool 2x2", "conv 4 3x3"))
TEACHER = ConvNet(("maxout 6 3x3 pad 0", "maxout 5", "dense 4"))
PARAMS = TEACHER.init(jax.random.key(0), INPUTS)["params"]
RECIPE = Recipe(
    network=lambda hp: NETWORK,
    preprocess=functools.partial(data.rescale, max_value=16),
    optimizer=lambda hp, epoch: optim.nesterov(hp.learning_rate, hp.momentum, 1e-3),
)
TWO_STAGES = taught(RECIPE, Teacher(TEACHER, PARAMS, hint_layer=1), guided_layer=2, hint_epochs=2, epochs=4)
HP = Hyperparameters(*map(jnp.float32, (0.05, 0.9, 0.1)), jnp.int32(0), jnp.float32(-1))


def test_losses_are_the_papers():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 10))
    np.testing.assert_allclose(hint_loss(a, b), ((a - b) ** 2).mean() / 2, rtol=1e-5)
    soft = [np.exp(z / 3) / np.exp(z / 3).sum(-1, keepdims=True) for z in (a, b)]
    np.testing.assert_allclose(distillation_loss(a, b), -(soft[1] * np.log(soft[0])).sum(-1).mean(), rtol=1e-5)
    rounded = [jnp.asarray(z, jnp.bfloat16) for z in (a, b)]
    for loss in hint_loss, distillation_loss:  # in float32 all the same
        np.testing.assert_allclose(loss(*rounded), loss(*map(jnp.float32, rounded)), rtol=1e-6)


def test_a_students_network_is_the_network_alone():
    run = training.init(TWO_STAGES, HP, jax.random.key(1), DIGITS.train["x"])
    params = dict(run.params)
    assert params.pop("regressor")["h"]["kernel"].shape == (3, 3, 4, 2 * 6)  # 8x8 guided, hints of 6x6
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, NETWORK.init(jax.random.key(1), INPUTS)["params"])
    images = DIGITS.test["x"][:5]
    expected = NETWORK.apply({"params": params}, images / np.float32(16))
    np.testing.assert_allclose(training.logits(TWO_STAGES, run, images), expected, rtol=1e-5, atol=1e-6)


def test_the_first_stage_moves_the_guided_layers_alone_and_the_second_all():
    run = training.init(TWO_STAGES, HP, jax.random.key(1), DIGITS.train["x"])
    batches = data.shuffled_batches(jax.tree.map(lambda leaf: leaf[:200], DIGITS.train), jax.random.key(0), 50)
    epoch = jax.jit(functools.partial(training.train_epoch, TWO_STAGES))
    student = TWO_STAGES.network(HP)
    far = DIGITS.train["x"] / np.float32(16)
    losses = [student.apply({"params": run.params}, far, method="hint_loss")]
    for number in range(3):
        before, (run, _) = run.params, epoch(run, batches)
        moved = {
            name for name in before if not jax.tree.all(jax.tree.map(np.array_equal, before[name], run.params[name]))
        }
        assert moved == ({"layer1", "layer2", "regressor"} if number < 2 else {*before})
        losses.append(student.apply({"params": run.params}, far, method="hint_loss"))
    assert losses[2] < losses[1] < losses[0]


def test_the_reported_loss_is_the_labels_and_the_weight_of_the_teachers_falls():
    run = training.init(TWO_STAGES, HP, jax.random.key(1), DIGITS.train["x"])
    batch = jax.tree.map(lambda leaf: leaf[:20], DIGITS.train)
    inputs = batch["x"] / np.float32(16)
    logits = NETWORK.apply({"params": run.params}, inputs)
    teacher = distillation_loss(logits, TEACHER.apply({"params": PARAMS}, inputs))
    _, loss = jax.jit(functools.partial(training.train_step, TWO_STAGES))(run, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, -jax.nn.log_softmax(logits)[np.arange(20), batch["y"]].mean(), rtol=1e-4)
    objective = jax.jit(lambda epoch: TWO_STAGES.objective(run.replace(epoch=epoch), inputs, logits, jnp.float32(1)))
    for epoch, weight in (2, 4.0), (3, 2.5):
        np.testing.assert_allclose(objective(jnp.int32(epoch)), 1 + weight * teacher, rtol=1e-4)


@pytest.mark.parametrize(
    ("guided", "hint", "message"),
    [
        (3, 1, r"guided_layer 3 has outputs of shape \(4, 4, 4\), the teacher's hint_layer 1 has \(6, 6, 6\)"),
        (1, 2, r"guided_layer 1 has outputs of shape \(8, 8, 4\), the teacher's hint_layer 2 has \(5,\)"),
    ],
)
def test_layers_that_do_not_fit_are_named(guided, hint, message):
    student = Student(NETWORK, guided, Teacher(TEACHER, PARAMS, hint))
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(student.init, jax.random.key(0), INPUTS)
    assert "\n" not in str(error.value)
