import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from highway_jax import ConvNet, data, population
from highway_jax.zoo import optim
from highway_jax.zoo.distillation import Student, Teacher, distillation_loss, hint_loss, taught

DIGITS = data.load("digits")
INPUTS = DIGITS.train["x"][:1] / np.float32(16)
NETWORK = ConvNet(("conv 4 3x3", "maxout 4 3x3", "maxpool 2x2", "conv 4 3x3"))
TEACHER = ConvNet(("maxout 6 3x3 pad 0", "maxout 5", "dense 4"))
PARAMS = jax.jit(TEACHER.init)(jax.random.key(0), INPUTS)["params"]
GUIDE = Teacher(TEACHER, PARAMS, hint_layer=1)
STEPS = 4


def student(hp):
    return Student(NETWORK, guided_layer=2, teacher=GUIDE, hint_epochs=2, epochs=4, steps_per_epoch=STEPS)


def rescaled(batch):
    return {**batch, "x": batch["x"] / np.float32(16)}


TASK = taught(student, lambda hp: optim.nesterov(0.05, 0.9, 1e-3), preprocess=rescaled)
SOME = {name: array[:200] for name, array in DIGITS.train.items()}


def test_losses_are_the_papers():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 10))
    np.testing.assert_allclose(hint_loss(a, b), ((a - b) ** 2).mean() / 2, rtol=1e-5)
    soft = [np.exp(z / 3) / np.exp(z / 3).sum(-1, keepdims=True) for z in (a, b)]
    np.testing.assert_allclose(distillation_loss(a, b), -(soft[1] * np.log(soft[0])).sum(-1).mean(), rtol=1e-5)
    rounded = [jnp.asarray(z, jnp.bfloat16) for z in (a, b)]
    for loss in hint_loss, distillation_loss:  # in float32 all the same
        np.testing.assert_allclose(loss(*rounded), loss(*map(jnp.float32, rounded)), rtol=1e-6)


@functools.cache
def started():
    return jax.jit(functools.partial(TASK.init, {}))(jax.random.key(1), SOME)


STEP = jax.jit(TASK.step)


def test_a_students_network_is_the_network_alone():
    params = dict(started().params)
    assert params.pop("regressor")["h"]["kernel"].shape == (3, 3, 4, 2 * 6)  # 8x8 guided, hints of 6x6
    alone = jax.eval_shape(NETWORK.init, jax.random.key(1), INPUTS)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, alone)
    expected = jax.jit(NETWORK.apply)({"params": params}, rescaled(SOME)["x"])
    found = jax.jit(TASK.evaluate)({}, started(), SOME)
    np.testing.assert_allclose(found["loss"], population.cross_entropy(expected, SOME), rtol=1e-4)
    np.testing.assert_array_equal(found["accuracy"], population.accuracy(expected, SOME))


def test_the_first_stage_moves_the_guided_layers_alone_and_the_second_all():
    state = started()
    far = rescaled(DIGITS.train)["x"]

    @jax.jit
    def hint_loss_of(state):
        return student({}).apply(state.variables, far, method="hint_loss")

    losses = [hint_loss_of(state)]
    for epoch in range(3):
        before = state.params
        for number in range(STEPS):
            batch = {name: array[50 * number : 50 * (number + 1)] for name, array in SOME.items()}
            state, _ = STEP({}, state, batch, jax.random.key(number))
        moved = {
            name for name in before if not jax.tree.all(jax.tree.map(np.array_equal, before[name], state.params[name]))
        }
        assert moved == ({"layer1", "layer2", "regressor"} if epoch < 2 else {*before})
        losses.append(hint_loss_of(state))
    assert losses[2] < losses[1] < losses[0]


def test_the_loss_is_each_stages_own_and_the_weight_of_the_teachers_falls():
    state = started()
    batch = {name: array[:50] for name, array in SOME.items()}
    inputs = rescaled(batch)["x"]
    logits = jax.jit(NETWORK.apply)({"params": state.params}, inputs)
    labels = -jax.nn.log_softmax(logits)[np.arange(50), batch["y"]].mean()
    teacher = distillation_loss(logits, jax.jit(TEACHER.apply)({"params": PARAMS}, inputs))
    hints = jax.jit(lambda variables: student({}).apply(variables, inputs, method="hint_loss"))(state.variables)
    for epoch, expected in (0, hints), (1, hints), (2, labels + 4.0 * teacher), (3, labels + 2.5 * teacher):
        now = state.replace(collections={"stages": {"steps": jnp.int32(epoch * STEPS + 1)}})
        _, found = STEP({}, now, batch, jax.random.key(0))
        np.testing.assert_allclose(found["loss"], expected, rtol=1e-4)
        np.testing.assert_allclose(found["cross_entropy"], labels, rtol=1e-4)


@pytest.mark.parametrize(
    ("guided", "hint", "message"),
    [
        (3, 1, r"guided_layer 3 has outputs of shape \(4, 4, 4\), the teacher's hint_layer 1 has \(6, 6, 6\)"),
        (4, 1, "guided_layer is 4; it must be 1 to 3, a layer before the output"),
        (1, 0, "hint_layer is 0; it must be 1 to 3, a layer before the output"),
        (1, 2, r"guided_layer 1 has outputs of shape \(8, 8, 4\), the teacher's hint_layer 2 has \(5,\)"),
    ],
)
def test_layers_that_do_not_fit_are_named(guided, hint, message):
    student = Student(NETWORK, guided, Teacher(TEACHER, PARAMS, hint))
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(student.init, jax.random.key(0), INPUTS)
    assert "\n" not in str(error.value)
