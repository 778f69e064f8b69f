import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from highway_jax import Highway, HighwayConv, HighwayDense, PlainConv, PlainDense
from highway_jax import nnx as native
from highway_jax.linen.maxout import Maxout

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
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    kept = {None: x, 2: x[..., :2], 3: x, 7: np.pad(x, [(0, 0)] * 3 + [(0, 4)])}[features]

    def gates_at(variables, bias):
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
        variables["params"]["t"]["bias"] += bias
        return variables

    dense, conv = HighwayDense(features=features), HighwayConv((3, 2), features=features, strides=strides)
    sampled = kept[:, ::strides, ::strides]
    for layer, expected in (dense, kept), (conv, sampled):
        variables, apply = jax.eval_shape(layer.init, KEY, x), jax.jit(layer.apply)
        np.testing.assert_array_equal(apply(gates_at(variables, -np.inf), x), expected)  # T = 0 carries x-hat
        np.testing.assert_array_equal(apply(gates_at(variables, np.inf), x), np.zeros_like(expected))
    # A field that sees its centre alone sees what the shortcut carries.
    variables = gates_at(variables, np.inf)
    variables["params"]["h"]["kernel"][1, 0] = np.eye(3, features or 3)
    np.testing.assert_array_equal(apply(variables, x)[..., :2], np.maximum(sampled, 0)[..., :2])


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


ATTENTION, RECURRENT = nn.MultiHeadDotProductAttention(num_heads=2), nn.RNN(nn.GRUCell(6))


@pytest.mark.parametrize(
    ("h", "gates"),
    [(ATTENTION, "t"), (ATTENTION, "t and c of their own"), (RECURRENT, "t"), (RECURRENT, "t of its own")],
)
def test_h_may_be_recurrent_or_attention(h, gates):
    own = {name: nn.Conv(6, (3,)) for name in "tc" if f"{name} " in gates}
    layer = Highway(h, transform_bias=-2.0, **own)
    x = jax.random.normal(KEY, (3, 5, 6))
    params = jax.jit(layer.init)(KEY, x)["params"]
    assert set(params) == {"h", "t", *own}

    y, captured = jax.jit(functools.partial(layer.apply, mutable="intermediates"))({"params": params}, x)
    found = {name: value for name, (value,) in captured["intermediates"].items() if name != "h"}
    h_alone = jax.jit(h.apply)({"params": params["h"]}, x)
    np.testing.assert_allclose(found["block_state"], h_alone, rtol=1e-5, atol=1e-6)
    z = {n: (g.apply({"params": params[n]}, x)) for n, g in own.items()} or {
        "t": nn.Dense(6).apply({"params": params["t"]}, x)
    }
    t = sigmoid(z["t"] - 2 if own else z["t"])
    c = sigmoid(z["c"] + 2) if "c" in z else 1 - t
    np.testing.assert_allclose(y, h_alone * t + x * c, rtol=1e-4, atol=1e-5)
    gradients = jax.jit(jax.grad(lambda p: (layer.apply({"params": p}, x) ** 2).sum()))(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients["t"]))

    carrying = layer.clone(transform_bias=-30.0)
    np.testing.assert_allclose(jax.jit(carrying.init_with_output)(KEY, x)[0], x, rtol=1e-5)


def linen(layer):
    return lambda x: (layer.init(KEY, x), layer.apply)


def nnx_layer(kind):
    def start(x):
        graph, params = nnx.split(kind(rngs=nnx.Rngs(0)), nnx.Param)
        return params, lambda params, x: nnx.merge(graph, params)(x)

    return start


@pytest.mark.parametrize(
    "start",
    [
        linen(HighwayDense("tanh")),
        linen(HighwayDense(carry="independent")),
        linen(HighwayConv(features=4, strides=2)),
        linen(PlainConv(2, activation="tanh")),
        linen(Highway(nn.Dense(3), nn.Dense(3), nn.Dense(3))),
        nnx_layer(functools.partial(native.HighwayDense, 3)),
        nnx_layer(functools.partial(native.HighwayConv, 3)),
    ],
    ids=["HighwayDense", "independent", "HighwayConv", "PlainConv", "Highway", "nnx.HighwayDense", "nnx.HighwayConv"],
)
def test_derivatives_of_both_modes_and_of_second_order_agree(start):
    # What one mode and the other make of the same derivative.
    x = jax.random.normal(KEY, (2, 5, 4, 3))
    params, apply = start(x)
    directions = [jax.tree.map(lambda leaf: jnp.cos(leaf + shift), (params, x)) for shift in (0.0, 1.0)]  # noqa: B023

    def loss(args):
        return (apply(*args) ** 2).mean()

    def along(f, direction):
        return lambda args: jax.jvp(f, (args,), (direction,))[1]

    def along_by_gradient(f, direction):
        def dot(args):
            products = jax.tree.map(lambda g, d: (g * d).sum(), jax.grad(f)(args), direction)
            return sum(jax.tree.leaves(products))

        return dot

    @jax.jit
    def everything(args):
        firsts = [way(loss, directions[0]) for way in (along, along_by_gradient)]
        seconds = [way(first, directions[1])(args) for way in (along, along_by_gradient) for first in firsts]
        return [first(args) for first in firsts] + [jax.linearize(loss, args)[1](directions[0])], seconds

    for values in everything((params, x)):
        assert abs(values[0]) > 1e-4
        np.testing.assert_allclose(values, values[0], rtol=1e-3, atol=1e-6)


class Inside(nn.Module):
    """A module in whose compact method a layer is built."""

    build: object

    @nn.compact
    def __call__(self, x):
        return self.build()(x)


class InSetup(Inside):
    def setup(self):
        self.layer = self.build()

    def __call__(self, x):
        return self.layer(x)


class Given(nn.Module):
    """Passes a module on that it was given."""

    h: nn.Module

    @nn.compact
    def __call__(self, x):
        return Highway(self.h)(x)


class Step(nn.Module):
    """A layer as `nn.scan` wants it."""

    @nn.compact
    def __call__(self, x, _):
        return Highway(nn.Dense(6))(x), None


def dense():
    return Highway(nn.Dense(6))


def scanned():
    steps = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    return lambda x: steps(x, None)[0]


AFFINE = {"kernel": (6, 6), "bias": (6,)}
PLACES = {
    "compact": (Inside(dense), {"Highway_0": {"h": AFFINE, "t": AFFINE}}),
    "setup": (InSetup(dense), {"layer": {"h": AFFINE, "t": AFFINE}}),
    "alone": (dense(), {"h": AFFINE, "t": AFFINE}),
    "gates of its own": (
        Inside(lambda: Highway(*(nn.Dense(6, name=f"my{n}") for n in range(3)))),
        {"Highway_0": {"h": AFFINE, "t": AFFINE, "c": AFFINE}},
    ),
    "given": (Inside(lambda: Given(nn.Dense(6))), {"Given_0": {"Highway_0": {"h": AFFINE, "t": AFFINE}}}),
    "Sequential": (
        Inside(lambda: nn.Sequential([dense(), nn.relu, dense()])),
        {f"Highway_{n}": {"h": AFFINE, "t": AFFINE} for n in range(2)},
    ),
    "of a Sequential": (
        Inside(lambda: Highway(nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(6)]))),
        {"Highway_0": {"h": {"layers_0": AFFINE, "layers_2": AFFINE}, "t": AFFINE}},
    ),
    "nested": (
        Inside(lambda: Highway(dense(), HighwayDense())),
        {"Highway_1": {"h": {"h": AFFINE, "t": AFFINE}, "t": {"h": AFFINE, "t": AFFINE}}},
    ),
    "remat": (
        Inside(lambda: nn.remat(Highway)(nn.Dense(6))),
        {"CheckpointHighway_0": {"h": AFFINE, "t": AFFINE}},
    ),
    "scan": (
        Inside(scanned),
        {"ScanStep_0": {"Highway_0": {name: {k: (3, *shape) for k, shape in AFFINE.items()} for name in ("h", "t")}}},
    ),
}


@pytest.mark.parametrize(("model", "expected"), PLACES.values(), ids=PLACES)
def test_parameters_live_under_h_t_and_c_wherever_the_layer_is_built(model, expected):
    x = jax.random.normal(KEY, (2, 6))
    y, variables = jax.jit(model.init_with_output)(KEY, x)
    assert jax.tree.map(jnp.shape, dict(variables)) == {"params": expected}
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(variables, x), y, rtol=1e-5)  # they are the ones that are used
    zeros = jax.tree.map(np.zeros_like, variables)
    assert not np.allclose(apply(zeros, x), y)


def test_dropout_and_batch_statistics_in_h_work_inside_a_module():
    def build():
        h = nn.Sequential([nn.Dense(6), nn.BatchNorm(use_running_average=False), nn.Dropout(0.5, deterministic=False)])
        return Highway(h)

    x = jax.random.normal(KEY, (8, 6))
    for model, place in (Inside(build), "Highway_0"), (InSetup(build), "layer"):
        variables = model.init({"params": KEY, "dropout": KEY}, x)
        assert set(variables["batch_stats"][place]["h"]) == {"layers_1"}
        run = functools.partial(model.apply, variables, x, mutable="batch_stats")
        (y, updated), (again, _), (other, _) = (run(rngs={"dropout": jax.random.key(n)}) for n in (1, 1, 2))
        mean = updated["batch_stats"][place]["h"]["layers_1"]["mean"]
        dense = variables["params"][place]["h"]["layers_0"]
        np.testing.assert_allclose(mean, 0.01 * (x @ dense["kernel"]).mean(axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(y, again)
        assert not np.allclose(y, other)


@pytest.mark.parametrize("first", [True, False])
def test_a_module_that_others_use_as_well_keeps_its_parameters_shared(first):
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(6)
            before = dense(x) if first else 0
            return Highway(dense)(nn.remat(Highway)(dense)(x)) + before + dense(x)

    x = jax.random.normal(KEY, (2, 6))
    params = Shared().init(KEY, x)["params"]
    flat = flatten_dict(params)
    (place,) = {path[:-1] for path, leaf in flat.items() if path[-2] != "t"}  # one kernel for all
    assert len(flat) == 6
    assert place == (("Dense_0",) if first else ("CheckpointHighway_0", "h"))
    affine = functools.reduce(lambda tree, key: tree[key], place, params)
    expected = x
    for name in "CheckpointHighway_0", "Highway_0":
        expected = Highway(nn.Dense(6)).apply({"params": {"h": affine, "t": params[name]["t"]}}, expected)
    expected += (1 + first) * (x @ affine["kernel"] + affine["bias"])
    np.testing.assert_allclose(Shared().apply({"params": params}, x), expected, rtol=1e-5, atol=1e-6)


def test_all_transform_gates_start_alike():
    x = jnp.ones((2, 8))
    ours, reference = (layer.init(KEY, x)["params"]["t"] for layer in (Highway(nn.Dense(8)), HighwayDense()))
    jax.tree.map(np.testing.assert_array_equal, ours, reference)


@pytest.mark.parametrize("size", [3, (3, 0), "33", (), (2.5, 3)])
@pytest.mark.parametrize(
    "build",
    [
        lambda size: HighwayConv(size).init(KEY, jnp.ones((1, 8, 8, 3))),
        lambda size: PlainConv(3, size).init(KEY, jnp.ones((1, 8, 8, 3))),
        lambda size: Maxout(3, size).init(KEY, jnp.ones((1, 8, 8, 3))),
        lambda size: native.HighwayConv(3, kernel_size=size, rngs=nnx.Rngs(0)),
        lambda size: native.PlainConv(3, 4, size, rngs=nnx.Rngs(0)),
    ],
)
def test_a_kernel_size_has_a_number_for_each_dimension(build, size):
    with pytest.raises(ValueError, match=r"kernel_size is .*such as \(3, 3\)") as error:
        build(size)
    assert repr(size) in str(error.value)


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (HighwayDense("sigmoid"), jnp.ones((1, 2)), "'sigmoid'.*must be one of 'relu', 'tanh'"),
        (PlainDense(3, 7), jnp.ones((1, 2)), "activation is 7"),
        (HighwayDense(carry="open"), jnp.ones((1, 2)), "carry is 'open'.*'coupled' or 'independent'"),
        (Highway(nn.Dense(3)), jnp.ones((1, 2)), r"h must keep its input's shape \(1, 2\), but returns \(1, 3\)"),
        (Highway(nn.Dense(2), nn.Dense(1)), jnp.ones((1, 2)), r"t must keep .* but returns \(1, 1\)"),
        (HighwayConv(), jnp.ones((8, 8, 3)), r"4 dimensions.*got shape \(8, 8, 3\)"),
        (PlainConv(3), jnp.ones((8, 3)), r"4 dimensions.*got shape \(8, 3\)"),
    ],
)
def test_mistakes_are_explained(layer, x, message):
    with pytest.raises(ValueError, match=message):
        layer.init(KEY, x)
