import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from highway_jax import MLP, HighwayDense, PlainDense
from highway_jax.functional.activations import gate
from highway_jax.linen import layer_params
from highway_jax.stack import fused, stack, states
from highway_jax.stack.kinds import HIGHWAY, INDEPENDENT, KINDS, Kind

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (3, 4, 2, 1))


def layer(params, index):
    return {"params": jax.tree.map(lambda leaf: leaf[index], params)}


@pytest.mark.parametrize(
    ("block", "activation"),
    # Others of every block are held against the equations below.
    [("highway", "relu"), ("highway", "tanh"), ("highway", jax.nn.silu), ("independent", "relu"), ("plain", "relu")],
)
def test_the_scanned_network_is_its_layers_one_after_another(block, activation):
    model = MLP(6, 5, num_classes=3, kind=block, activation=activation, transform_bias=-0.5)
    carry = "independent" if block == "independent" else "coupled"
    params = jax.jit(model.init)(KEY, X)["params"]

    def by_hand(params, x):
        x = PlainDense(5, activation).apply({"params": params["input"]}, x.reshape(3, -1))
        for index in range(5):
            single = PlainDense(5, activation) if block == "plain" else HighwayDense(activation, carry=carry)
            stacked = layer_params(params)
            x = single.apply(layer(stacked, index), x)
        return x @ params["output"]["kernel"] + params["output"]["bias"]

    def scanned(params, x):
        return model.apply({"params": params}, x)

    def with_gradients(network):
        def loss(params, x):
            logits = network(params, x)
            return (logits**2).sum(), logits

        gradients, logits = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, X)
        return logits, gradients

    (logits, ours), (expected, reference) = with_gradients(scanned), with_gradients(by_hand)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, reference)


@pytest.mark.parametrize("kind", ["highway", "independent"])
def test_every_layer_starts_with_weights_of_its_own_and_biased_to_carry(kind):
    bias = jnp.float32(-4.0)
    model = MLP(depth=4, width=300, activation="tanh", transform_bias=bias, kind=kind)
    gates = layer_params(jax.jit(model.init)(KEY, X)["params"])
    assert {gate: float(p["bias"].mean()) for gate, p in gates.items()} == (
        {"h": 0, "t": -4} if kind == "highway" else {"h": 0, "t": -4, "c": 4}
    )
    kernels = np.concatenate([p["kernel"] for p in gates.values()])
    np.testing.assert_allclose(kernels.var(axis=(1, 2)), 2 / 600, rtol=0.03)  # Glorot
    correlations = np.corrcoef(kernels.reshape(len(kernels), -1)) - np.eye(len(kernels))
    assert np.abs(correlations).max() < 0.05


def by_hand(block, phi, sigmoid, bias, x, kernel, biases):
    """The equations of every kind of block, layer after layer, with nothing of the library's."""
    y = c = x
    for w, b in zip(kernel, biases, strict=True):
        h, *gates = jnp.split(y @ w + b, len(b) // y.shape[-1], axis=-1)
        h, gates = phi(h), [sigmoid(z) for z in gates]
        if block == "lstm":
            i, f, o = gates
            c = f * c + i * h
        y = {
            "plain": lambda: h,  # noqa: B023
            "highway": lambda: h * gates[0] + y * (1 - gates[0]),  # noqa: B023
            "independent": lambda: h * gates[0] + y * gates[1],  # noqa: B023
            "residual": lambda: y + h,  # noqa: B023
            "fixed": lambda: h * sigmoid(bias) + y * (1 - sigmoid(bias)),  # noqa: B023
            "lstm": lambda: o * phi(c),  # noqa: B023
            "mine": lambda: y + gates[0] * h,  # noqa: B023
        }[block]()
    return y


def mine(x, z, phi, transform_bias):
    return {"block_output": x + gate(z["t"]) * phi(z["h"])}


MINE = Kind(mine, lambda transform_bias: {"h": 0.0, "t": transform_bias})


@pytest.fixture(params=["this platform", "tpu"])
def programs(request, monkeypatch):
    """The stack's program of this platform, and that of a TPU."""
    if request.param == "tpu":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, default: tpu(*args))


@pytest.mark.parametrize("block", [*KINDS, "mine"])
def test_a_stack_and_its_gradients_are_the_blocks_equations(block, programs):
    with jax.enable_x64(True):
        kind = KINDS.get(block, MINE)
        x, bias = jax.random.normal(KEY, (3, 4), jnp.float64), -1.5
        shape = (5, 4, len(kind.biases(bias)) * 4)
        kernel, biases = jax.random.normal(KEY, shape, jnp.float64) / 2, jnp.linspace(-1, 1, shape[0] * shape[2])
        weights = kernel, biases.reshape(shape[0], shape[2])

        def ours(x, *weights, activation, remat):
            y = stack(kind, x, *weights, activation, bias, remat)
            return (y**2).sum(), y

        def reference(x, *weights):
            y = by_hand(block, jnp.tanh, lambda z: 1 / (1 + jnp.exp(-z)), bias, x, *weights)
            return (y**2).sum(), y

        def gradients(f):
            return jax.jit(jax.grad(f, (0, 1, 2), has_aux=True))(x, *weights)

        expected = gradients(reference)
        # By its index, whose backward pass is our own, and as any function.
        for options in {"activation": 1, "remat": False}, {"activation": jnp.tanh, "remat": True}:
            found = gradients(partial(ours, **options))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)


def test_no_layers_change_nothing(programs):
    x, *weights = jnp.ones((3, 4)), jnp.ones((0, 4, 8)), jnp.ones((0, 8))
    gradients = jax.jit(jax.grad(lambda *args: (stack(HIGHWAY, *args, "tanh") ** 2).sum(), (0, 1, 2)))
    jax.tree.map(np.testing.assert_array_equal, gradients(x, *weights), (2 * x, *weights))


@pytest.mark.parametrize("programs", ["tpu"], indirect=True)
def test_on_a_tpu_a_stack_keeps_no_dz_and_devices_that_share_a_batch_add_up_all_layers_at_once(programs, two_devices):
    def compiled(devices):
        mesh = Mesh(jax.devices()[:devices], "data")
        over = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), (), ())]
        gradients = jax.grad(lambda x, *weights: stack(HIGHWAY, x, *weights, "tanh").sum(), (1, 2))
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((6, 4), (5, 4, 8), (5, 8))]
        return jax.jit(gradients, in_shardings=over, out_shardings=over[1]).lower(*shapes).compile().as_text()

    alone, together = compiled(1), compiled(2)
    assert "f32[5,6,8]" not in alone and "f32[5,3,8]" in together
    added = re.findall(r"= (.*?) all-reduce(?:-start)?\(", together)
    assert set(re.findall(r"\w+\[[\d,]*\]", " ".join(added))) == {"f32[5,4,8]", "f32[5,8]"}


def test_rematerialization_needs_less_memory():
    def memory(block, remat):
        model = MLP(depth=401, width=8, kind=block, remat=remat)
        params = jax.eval_shape(model.init, KEY, X)
        inputs = jax.ShapeDtypeStruct((200, 8), jnp.float32)
        gradients = jax.jit(jax.grad(lambda p, x: model.apply(p, x).sum()))
        return gradients.lower(params, inputs).compile().memory_analysis().temp_size_in_bytes

    for block in "highway", "lstm":
        assert memory(block, remat=True) < memory(block, remat=False) / 5


def test_a_block_starts_with_the_biases_it_names():
    biases = {
        "highway": {"h": 0, "t": -3},
        "independent": {"h": 0, "t": -3, "c": 3},
        "residual": {"h": 0},
        "fixed": {"h": 0},
        "lstm": {"h": 0, "i": -3, "f": 3, "o": 0},
    }
    for block, expected in biases.items():
        params = jax.jit(MLP(depth=4, width=5, kind=block, transform_bias=-3.0).init)(KEY, X)["params"]
        found = {name: p["bias"] for name, p in layer_params(params, tuple(expected)).items()}
        jax.tree.map(np.testing.assert_array_equal, found, {n: np.full((3, 5), b) for n, b in expected.items()})


@pytest.mark.parametrize("block", KINDS)
def test_logits_and_inner_states_have_their_dtypes(block):
    mixed = MLP(depth=4, width=5, kind=block, dtype=jnp.bfloat16, transform_bias=jnp.float32(-3))
    variables = jax.eval_shape(mixed.init, KEY, X)
    logits, sown = jax.eval_shape(partial(mixed.apply, mutable="intermediates"), variables, X)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(sown)} == {jnp.dtype("bfloat16")}
    assert jax.eval_shape(mixed.clone(param_dtype=jnp.bfloat16).init_with_output, KEY, X)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("options", [{}, {"remat": True}, {"implementation": "fused"}], ids=str)
@pytest.mark.parametrize("leading", [(), (2, 3), (1, 2, 3)])
def test_a_stack_takes_any_leading_axes(leading, options):
    if "implementation" in options:
        try:
            fused.load()
        except fused.Unavailable as error:
            pytest.skip(str(error))
    x = jax.random.normal(KEY, (*leading, 4))
    weights = jax.random.normal(KEY, (5, 4, 8)) / 2, jnp.ones((5, 8)) / 3

    def gradients(flat):
        def loss(x, *weights):
            y = stack(HIGHWAY, x.reshape(-1, 4) if flat else x, *weights, "tanh", **options)
            return (y**2).sum(), y.reshape(x.shape)

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x, *weights)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradients(False), gradients(True))
    shown = jax.jit(lambda x: states(HIGHWAY, x, *weights, "tanh"))
    found, flat = shown(x), shown(x.reshape(-1, 4))
    for name, value in found.items():
        assert value.shape == (5, *leading, 4)
        np.testing.assert_allclose(value.reshape(5, -1, 4), flat[name], rtol=1e-6)


def test_a_stack_has_second_derivatives_and_no_forward_mode(programs):
    # As its docstring says.
    x, weights = jax.random.normal(KEY, (2, 3)), (jax.random.normal(KEY, (4, 3, 6)) / 2, jnp.ones((4, 6)) / 3)

    def hessian(apply):
        return jax.jit(jax.hessian(lambda bias: (apply(x, weights[0], bias) ** 2).sum()))(weights[1])

    ours = hessian(lambda *args: stack(HIGHWAY, *args, "tanh"))
    sigmoid = jax.nn.sigmoid
    np.testing.assert_allclose(ours, hessian(partial(by_hand, "highway", jnp.tanh, sigmoid, 0.0)), rtol=1e-3, atol=1e-5)

    def output(x):
        return stack(HIGHWAY, x, *weights, "tanh")

    for forward in jax.jacfwd(output), lambda x: jax.jvp(output, (x,), (x,)), lambda x: jax.linearize(output, x)[1](x):
        with pytest.raises(TypeError, match="forward-mode"):
            forward(x)


def test_an_lstm_block_with_closed_input_and_open_forget_gates_carries():
    model = MLP(depth=30, width=5, kind="lstm", transform_bias=-20.0)
    variables = jax.jit(model.init)(KEY, X)
    states = jax.jit(partial(model.apply, mutable="intermediates"))(variables, X)[1]["intermediates"]["layers"]
    found = {name: value for name, (value,) in states.items()}
    gates = {f"{name}_gate" for name in ("input", "forget", "output")}
    assert set(found) == {"block_state", "cell_state", "block_output", *gates}
    first = PlainDense(5).apply({"params": variables["params"]["input"]}, X.reshape(3, -1))
    np.testing.assert_allclose(found["cell_state"][-1], first, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        found["block_output"], found["output_gate"] * jax.nn.relu(found["cell_state"]), rtol=1e-6
    )


@pytest.mark.parametrize("parts", [2, 3])
def test_the_explicit_backward_pass_of_a_stack(parts):
    block = HIGHWAY if parts == 2 else INDEPENDENT
    x = jax.random.normal(KEY, (3, 4))
    kernel, bias = jax.random.normal(KEY, (5, 4, parts * 4)) / 2, jnp.ones((5, parts * 4)) / 3
    layers = jax.jit(lambda *args: stack(block, *args, "tanh"))
    check_grads(layers, (x, kernel, bias), 1, modes=["rev"], atol=2e-2, rtol=2e-2)
    found = jax.jit(lambda *args: states(block, *args, "tanh"))(x, kernel, bias)
    np.testing.assert_allclose(found["block_output"][-1], layers(x, kernel, bias), rtol=1e-6)
    assert (parts == 2) == np.allclose(found["carry_gate"], 1 - found["transform_gate"])


def test_a_traced_activation_is_the_named_one():
    for index, name in enumerate(("relu", "tanh")):
        run = jax.jit(lambda i: MLP(depth=4, width=5, activation=i).init_with_output(KEY, X))
        traced, named = run(index), jax.jit(MLP(depth=4, width=5, activation=name).init_with_output)(KEY, X)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), traced, named)


def test_inner_states_can_be_asked_for():
    model = MLP(depth=4, width=5, transform_bias=-2.0)
    variables = jax.jit(model.init)(KEY, X)
    assert set(variables) == {"params"}
    logits, captured = jax.jit(partial(model.apply, mutable="intermediates"))(variables, X)
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
        ({"kind": "dense"}, "kind is 'dense'.*'highway', 'independent', 'plain', .*'lstm', or a Kind"),
        ({"activation": "elu"}, "activation is 'elu'"),
    ],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        MLP(**options).init(KEY, X)
