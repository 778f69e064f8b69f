import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from highway_jax import Highway, HighwayConv, HighwayDense, PlainConv, PlainDense

KEY = jax.random.key(0)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def shapes(params):
    return {"/".join(path): leaf.shape for path, leaf in flatten_dict(params).items()}


@pytest.mark.parametrize("carry", ["coupled", "independent"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_highway_dense_is_equation_2(carry, activation):
    layer = HighwayDense(activation=activation, transform_bias=-2.0, carry=carry)
    x = jax.random.normal(KEY, (4, 6))
    params = layer.init(KEY, x)["params"]
    z = {name: np.asarray(x) @ p["kernel"] + p["bias"] for name, p in params.items()}
    h = np.maximum(z["h"], 0) if activation == "relu" else np.tanh(z["h"])
    t = sigmoid(z["t"])
    c = sigmoid(z["c"]) if carry == "independent" else 1 - t
    np.testing.assert_allclose(layer.apply({"params": params}, x), h * t + x * c, rtol=1e-5, atol=1e-6)


def test_parameters_have_the_contracts_names_and_shapes():
    dense = HighwayDense(carry="independent").init(KEY, jnp.ones((2, 50)))["params"]
    assert shapes(dense) == {f"{gate}/{leaf}": shape for gate in "htc" for leaf, shape in
                             (("kernel", (50, 50)), ("bias", (50,)))}  # fmt: skip
    conv = HighwayConv(kernel_size=(5, 3)).init(KEY, jnp.ones((2, 8, 8, 4)))["params"]
    assert shapes(conv) == {f"{gate}/{leaf}": shape for gate in "ht" for leaf, shape in
                            (("kernel", (5, 3, 4, 4)), ("bias", (4,)))}  # fmt: skip


def test_parameter_counts_of_section_3_1():
    def count(layer, width):
        return sum(leaf.size for leaf in jax.tree.leaves(layer.init(KEY, jnp.ones((1, width)))))

    assert count(HighwayDense(), 50) == 5100
    assert count(PlainDense(71), 71) == 5112


def test_gates_start_biased_to_carry():
    params = HighwayDense(transform_bias=-3.0, carry="independent").init(KEY, jnp.ones((2, 8)))["params"]
    np.testing.assert_array_equal(params["t"]["bias"], np.full(8, -3.0))
    np.testing.assert_array_equal(params["c"]["bias"], np.full(8, 3.0))
    np.testing.assert_array_equal(params["h"]["bias"], np.zeros(8))


@pytest.mark.parametrize(("activation", "variance"), [("tanh", 2 / 600), ("relu", 2 / 300)])
def test_weights_are_normalized(activation, variance):
    # Glorot: 2 / (fan in + fan out); He: 2 / fan in.
    kernel = HighwayDense(activation).init(KEY, jnp.ones((1, 300)))["params"]["t"]["kernel"]
    assert np.isclose(kernel.var(), variance, rtol=0.03)
    assert (np.abs(kernel).max() <= np.sqrt(3 * variance) * 1.0001) == (activation == "tanh")  # uniform or normal


@pytest.mark.parametrize("layer", [HighwayConv(), HighwayConv((1, 1)), HighwayConv((2, 4), carry="independent")])
def test_a_highway_convolution_keeps_its_inputs_shape(layer):
    x = jax.random.normal(KEY, (2, 7, 5, 3))
    y, variables = layer.init_with_output(KEY, x)
    assert y.shape == x.shape
    closed = jax.tree.map(jnp.zeros_like, variables)
    closed["params"]["t"]["bias"] -= jnp.inf  # T = 0, so a coupled layer is the identity
    if layer.carry == "coupled":
        np.testing.assert_array_equal(layer.apply(closed, x), x)


def test_one_by_one_convolution_is_a_dense_layer_at_every_position():
    x = jax.random.normal(KEY, (2, 4, 4, 6))
    params = HighwayConv((1, 1)).init(KEY, x)["params"]
    dense = {gate: {"kernel": p["kernel"][0, 0], "bias": p["bias"]} for gate, p in params.items()}
    expected = HighwayDense().apply({"params": dense}, x)
    np.testing.assert_allclose(HighwayConv((1, 1)).apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("features", [None, 2, 3, 7])
def test_a_highway_layer_changes_the_size_by_sub_sampling_and_zero_padding(features, strides):
    x = jax.random.normal(KEY, (2, 7, 6, 3))
    kept = {None: x, 2: x[..., :2], 3: x, 7: jnp.concatenate([x, jnp.zeros((2, 7, 6, 4))], axis=-1)}[features]

    def gates_at(variables, bias):
        variables = jax.tree.map(jnp.zeros_like, variables)
        variables["params"]["t"]["bias"] += bias
        return variables

    dense, conv = HighwayDense(features=features), HighwayConv((3, 2), features=features, strides=strides)
    sampled = kept[:, ::strides, ::strides]
    for layer, expected in (dense, kept), (conv, sampled):
        variables = layer.init(KEY, x)
        np.testing.assert_array_equal(layer.apply(gates_at(variables, -jnp.inf), x), expected)  # T = 0 carries x-hat
        np.testing.assert_array_equal(layer.apply(gates_at(variables, jnp.inf), x), jnp.zeros_like(expected))
    # A field that sees its centre alone sees what the shortcut carries.
    variables = gates_at(conv.init(KEY, x), jnp.inf)
    centre = variables["params"]["h"]["kernel"].at[1, 0].set(jnp.eye(3, features or 3))
    variables["params"]["h"]["kernel"] = centre
    np.testing.assert_array_equal(conv.apply(variables, x)[..., :2], jax.nn.relu(sampled)[..., :2])


@pytest.mark.parametrize("layer", [HighwayDense(carry="independent"), HighwayConv(), PlainDense(3), PlainConv(3)])
def test_inner_states_can_be_asked_for(layer):
    x = jax.random.normal(KEY, (2, 4, 4, 3))
    variables = layer.init(KEY, x)
    assert set(variables) == {"params"}
    y, captured = layer.apply(variables, x, mutable="intermediates")
    states = {name: value for name, (value,) in captured["intermediates"].items()}
    np.testing.assert_array_equal(states.pop("block_output"), y)
    if states:
        t, c = states["transform_gate"], states["carry_gate"]
        np.testing.assert_allclose(states["block_state"] * t + x * c, y, rtol=1e-5, atol=1e-6)
    assert set(states) == ({"block_state", "transform_gate", "carry_gate"} if "t" in variables["params"] else set())


def test_layers_in_bfloat16_and_with_a_users_own_activation():
    x = jnp.ones((2, 8))
    y, variables = HighwayDense(jax.nn.gelu, dtype=jnp.bfloat16).init_with_output(KEY, x)
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["h"]["kernel"].dtype == jnp.float32


@pytest.mark.parametrize("gates", ["t", "t of its own", "t and c of their own"])
@pytest.mark.parametrize("h", [nn.MultiHeadDotProductAttention(num_heads=2), nn.RNN(nn.GRUCell(6))])
def test_h_may_be_recurrent_or_attention(h, gates):
    own = {name: nn.Conv(6, (3,)) for name in "tc" if f"{name} " in gates}
    layer = Highway(h, transform_bias=-2.0, **own)
    x = jax.random.normal(KEY, (3, 5, 6))
    params = layer.init(KEY, x)["params"]
    assert set(params) == {"h", "t", *own}

    y, captured = layer.apply({"params": params}, x, mutable="intermediates")
    found = {name: value for name, (value,) in captured["intermediates"].items() if name != "h"}
    h_alone = h.apply({"params": params["h"]}, x)
    np.testing.assert_allclose(found["block_state"], h_alone, rtol=1e-5, atol=1e-6)
    z = {n: (g.apply({"params": params[n]}, x)) for n, g in own.items()} or {
        "t": nn.Dense(6).apply({"params": params["t"]}, x)
    }
    t = sigmoid(z["t"] - 2 if own else z["t"])
    c = sigmoid(z["c"] + 2) if "c" in z else 1 - t
    np.testing.assert_allclose(y, h_alone * t + x * c, rtol=1e-4, atol=1e-5)
    gradients = jax.grad(lambda p: (layer.apply({"params": p}, x) ** 2).sum())(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients["t"]))

    carrying = layer.clone(transform_bias=-30.0)
    np.testing.assert_allclose(carrying.apply(carrying.init(KEY, x), x), x, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (HighwayDense("sigmoid"), jnp.ones((1, 2)), "'sigmoid'.*must be one of 'relu', 'tanh'"),
        (PlainDense(3, 7), jnp.ones((1, 2)), "activation is 7"),
        (HighwayDense(carry="open"), jnp.ones((1, 2)), "carry is 'open'.*'coupled' or 'independent'"),
        (Highway(nn.Dense(3)), jnp.ones((1, 2)), r"h must keep its input's shape \(1, 2\), but gives \(1, 3\)"),
        (Highway(nn.Dense(2), nn.Dense(1)), jnp.ones((1, 2)), r"t must keep .* but gives \(1, 1\)"),
        (HighwayConv(), jnp.ones((8, 8, 3)), r"4 dimensions.*got shape \(8, 8, 3\)"),
        (PlainConv(3), jnp.ones((8, 3)), r"4 dimensions.*got shape \(8, 3\)"),
    ],
)
def test_mistakes_are_explained(layer, x, message):
    with pytest.raises(ValueError, match=message):
        layer.init(KEY, x)
