import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from highway_jax import MLP, HighwayDense, PlainDense
from highway_jax.models import layer_params
from highway_jax.stack import highway_stack, highway_states

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (3, 4, 2, 1))


def layer(params, index):
    return {"params": jax.tree.map(lambda leaf: leaf[index], params)}


@pytest.mark.parametrize("activation", ["relu", "tanh", jax.nn.silu])
@pytest.mark.parametrize(("block", "carry"), [("highway", "coupled"), ("highway", "independent"), ("plain", "coupled")])
def test_the_scanned_network_is_its_layers_one_after_another(block, carry, activation):
    model = MLP(6, 5, num_classes=3, block=block, activation=activation, transform_bias=-0.5, carry=carry)
    params = model.init(KEY, X)["params"]

    def by_hand(params, x):
        x = PlainDense(5, activation).apply({"params": params["input"]}, x.reshape(3, -1))
        for index in range(5):
            single = HighwayDense(activation, carry=carry) if block == "highway" else PlainDense(5, activation)
            stacked = layer_params(params)
            x = single.apply(layer(stacked, index), x)
        return x @ params["output"]["kernel"] + params["output"]["bias"]

    def scanned(params, x):
        return model.apply({"params": params}, x)

    np.testing.assert_allclose(scanned(params, X), by_hand(params, X), rtol=1e-5, atol=1e-5)
    ours, reference = (jax.grad(lambda p, x: (f(p, x) ** 2).sum(), (0, 1))(params, X) for f in (scanned, by_hand))  # noqa: B023
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, reference)


@pytest.mark.parametrize("carry", ["coupled", "independent"])
def test_every_layer_starts_with_weights_of_its_own_and_biased_to_carry(carry):
    bias = jnp.float32(-4.0)
    model = MLP(depth=4, width=300, activation="tanh", transform_bias=bias, carry=carry)
    gates = layer_params(model.init(KEY, X)["params"])
    assert {gate: float(p["bias"].mean()) for gate, p in gates.items()} == (
        {"h": 0, "t": -4} if carry == "coupled" else {"h": 0, "t": -4, "c": 4}
    )
    kernels = np.concatenate([p["kernel"] for p in gates.values()])
    np.testing.assert_allclose(kernels.var(axis=(1, 2)), 2 / 600, rtol=0.03)  # Glorot
    correlations = np.corrcoef(kernels.reshape(len(kernels), -1)) - np.eye(len(kernels))
    assert np.abs(correlations).max() < 0.05


@pytest.mark.parametrize("parts", [2, 3])
def test_the_explicit_backward_pass_of_a_stack(parts):
    x = jax.random.normal(KEY, (3, 4))
    kernel, bias = jax.random.normal(KEY, (5, 4, parts * 4)) / 2, jnp.ones((5, parts * 4)) / 3
    check_grads(lambda *args: highway_stack(*args, "tanh"), (x, kernel, bias), 1, modes=["rev"], atol=2e-2, rtol=2e-2)
    states = highway_states(x, kernel, bias, "tanh")
    np.testing.assert_allclose(states["block_output"][-1], highway_stack(x, kernel, bias, "tanh"), rtol=1e-6)
    assert (parts == 2) == np.allclose(states["carry_gate"], 1 - states["transform_gate"])


def test_a_traced_activation_is_the_named_one():
    for index, name in enumerate(("relu", "tanh")):
        run = jax.jit(lambda i: MLP(depth=4, width=5, activation=i).init_with_output(KEY, X))
        traced, named = run(index), MLP(depth=4, width=5, activation=name).init_with_output(KEY, X)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), traced, named)


def test_inner_states_can_be_asked_for():
    model = MLP(depth=4, width=5, transform_bias=-2.0)
    variables = model.init(KEY, X)
    assert set(variables) == {"params"}
    logits, captured = model.apply(variables, X, mutable="intermediates")
    states = {name: value for name, (value,) in captured["intermediates"]["layers"].items()}
    assert {name: value.shape for name, value in states.items()} == dict.fromkeys(
        ("block_state", "transform_gate", "carry_gate", "block_output"), (3, 3, 5)
    )
    output = variables["params"]["output"]
    last = states["block_output"][-1]
    np.testing.assert_allclose(last @ output["kernel"] + output["bias"], logits, rtol=1e-5, atol=1e-6)


def test_the_program_of_a_thousand_layers_is_no_longer_than_that_of_ten():
    def program(depth):
        model = MLP(depth=depth, width=5)
        params = jax.eval_shape(model.init, KEY, X)
        return jax.jit(jax.grad(lambda p: model.apply(p, X).sum())).lower(params).as_text().count("\n")

    assert program(1000) == program(10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1}, "depth is 1; it must be at least 2"),
        ({"width": 0}, "width is 0"),
        ({"block": "residual"}, "block is 'residual'.*'highway', 'plain'"),
        ({"carry": "open"}, "carry is 'open'.*'coupled', 'independent'"),
        ({"activation": "elu"}, "activation is 'elu'"),
    ],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        MLP(**options).init(KEY, X)
