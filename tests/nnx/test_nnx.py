import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from highway_jax import MLP, linen
from highway_jax import nnx as native
from highway_jax import stack as stacks
from highway_jax.functional.initializers import normalized
from highway_jax.linen import layer_params, layers
from highway_jax.stack.kinds import INDEPENDENT

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 7, 6, 3))

PAIRS = {
    "dense": (native.HighwayDense, (3,), {}, layers.HighwayDense()),
    "dense, independent": (
        native.HighwayDense,
        (3,),
        {"activation": "tanh", "transform_bias": -3.0, "carry": "independent"},
        layers.HighwayDense("tanh", transform_bias=-3.0, carry="independent"),
    ),
    "dense, wider": (
        native.HighwayDense,
        (3, 5),
        {"activation": jax.nn.gelu},
        layers.HighwayDense(jax.nn.gelu, features=5),
    ),
    "dense, bfloat16": (native.HighwayDense, (3,), {"dtype": jnp.bfloat16}, layers.HighwayDense(dtype=jnp.bfloat16)),
    "conv": (native.HighwayConv, (3,), {}, layers.HighwayConv()),
    "conv, independent, narrower, strided": (
        native.HighwayConv,
        (3, 2, (2, 4), 2),
        {"activation": "tanh", "carry": "independent"},
        layers.HighwayConv((2, 4), "tanh", carry="independent", features=2, strides=2),
    ),
    "plain dense": (native.PlainDense, (3, 4), {"activation": "tanh"}, layers.PlainDense(4, "tanh")),
    "plain conv": (
        native.PlainConv,
        (3, 4, (3, 2), 2),
        {"padding": "VALID"},
        layers.PlainConv(4, (3, 2), "VALID", strides=2),
    ),
}


def pure(state):
    return nnx.to_pure_dict(state)


@pytest.mark.parametrize(("kind", "args", "options", "twin"), PAIRS.values(), ids=PAIRS)
def test_a_layer_is_its_linen_twin(kind, args, options, twin):
    layer = kind(*args, **options, rngs=nnx.Rngs(0))
    start = pure(nnx.state(layer, nnx.Param))
    params = jax.jit(twin.init)(KEY, X)["params"]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), start) == jax.tree.map(lambda a: (a.shape, a.dtype), params)
    for part in params:  # biases that no key decides
        np.testing.assert_array_equal(start[part]["bias"], params[part]["bias"])

    nnx.update(layer, params)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if twin.dtype else {"rtol": 1e-5, "atol": 1e-6}
    y, expected = nnx.jit(kind.__call__)(layer, X), jax.jit(twin.apply)({"params": params}, X)
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(*(np.float32(a) for a in (y, expected)), **tolerance)

    grads = nnx.jit(nnx.grad(lambda layer, x: (layer(x) ** 2).sum(), argnums=(0, 1)))(layer, X)
    wanted = jax.jit(jax.grad(lambda p, x: (twin.apply({"params": p}, x) ** 2).sum(), argnums=(0, 1)))(params, X)
    close = {"rtol": 1e-1, "atol": 1e-1} if twin.dtype else {"rtol": 1e-4, "atol": 1e-4}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), (pure(grads[0]), grads[1]), wanted)


def test_weights_start_from_the_activations_initializer_and_keys_of_their_own():
    layer, rngs = native.HighwayDense(8, activation="tanh", rngs=nnx.Rngs(3)), nnx.Rngs(3)
    np.testing.assert_array_equal(layer.h.kernel[...], normalized("tanh")(rngs.params(), (8, 8)))
    assert not np.array_equal(layer.h.kernel[...], layer.t.kernel[...])
    zeros = native.HighwayConv(2, kernel_init=jax.nn.initializers.zeros, rngs=nnx.Rngs(0))
    assert not zeros.t.kernel[...].any()


@pytest.mark.parametrize("carry", ["coupled", "independent"])
def test_inner_states_can_be_asked_for(carry):
    layer = native.HighwayDense(3, carry=carry, rngs=nnx.Rngs(0))
    y, captured = nnx.capture(layer, nnx.Intermediate)(X)
    states = {name: value for name, (value,) in pure(captured).items()}
    np.testing.assert_array_equal(states["block_output"], y)
    expected = states["block_state"] * states["transform_gate"] + X * states["carry_gate"]
    np.testing.assert_allclose(expected, y, rtol=1e-5, atol=1e-6)
    layer(X)
    kept = set(pure(nnx.state(layer)))
    assert kept == ({"h", "t"} if carry == "coupled" else {"h", "t", "c"})  # no state stays behind


def test_a_searchs_network_goes_on_as_a_scan_of_native_layers():
    model = MLP(depth=6, width=4, num_classes=3, kind="independent")
    params = jax.jit(model.init)(KEY, X)["params"]
    gates = layer_params(params)

    @nnx.split_rngs(splits=5)
    @nnx.vmap
    def start(rngs):
        return native.HighwayDense(4, carry="independent", rngs=rngs)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def apply(x, layer):
        return layer(x)

    stack = start(nnx.Rngs(0))
    assert len(np.unique(stack.h.kernel[...].sum(axis=(1, 2)))) == 5  # each layer has weights of its own
    nnx.update(stack, gates)
    first = native.PlainDense(126, 4, rngs=nnx.Rngs(0))
    nnx.update(first, params["input"])
    states = model.apply({"params": params}, X, mutable="intermediates")[1]["intermediates"]["layers"]
    x = first(X.reshape(2, -1))
    np.testing.assert_allclose(apply(x, stack), states["block_output"][0][-1], rtol=1e-5, atol=1e-5)

    grads = nnx.jit(nnx.grad(lambda stack: (apply(x, stack) ** 2).sum()))(stack)
    kernel, bias = (jnp.concatenate([gates[g][leaf] for g in gates], axis=-1) for leaf in ("kernel", "bias"))
    wanted = jax.jit(jax.grad(lambda weights: (stacks.stack(INDEPENDENT, x, *weights, "relu") ** 2).sum()))(
        (kernel, bias)
    )
    wanted = layer_params({"layers": dict(zip(("kernel", "bias"), wanted, strict=True))})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), pure(grads), wanted)


def test_the_activation_and_the_bias_may_be_a_populations():
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def population(rngs, activation, bias):
        return native.HighwayDense(3, activation=activation, transform_bias=bias, rngs=rngs)

    runs = population(nnx.Rngs(0), jnp.arange(2), jnp.array([-1.0, -4.0]))
    both = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(runs, X)
    for run, name in enumerate(("relu", "tanh")):
        alone = native.HighwayDense(3, activation=name, rngs=nnx.Rngs(0))
        nnx.update(alone, jax.tree.map(lambda leaf: leaf[run], pure(nnx.state(runs, nnx.Param))))  # noqa: B023
        np.testing.assert_allclose(both[run], alone(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(runs.t.bias[...][:, 0], [-1, -4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: native.HighwayDense(3, activation="sigmoid", rngs=nnx.Rngs(0)), "'sigmoid'.*one of 'relu', 'tanh'"),
        (lambda: native.HighwayConv(3, carry="open", rngs=nnx.Rngs(0)), "carry is 'open'.*'coupled' or 'independent'"),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("options", [{}, {"kind": "lstm", "activation": "tanh"}, {"kind": "independent"}])
def test_a_stack_is_its_linen_twin(options):
    x = jax.random.normal(KEY, (4, 3))
    stack, twin = native.HighwayStack(3, 5, **options, rngs=nnx.Rngs(0)), linen.HighwayStack(5, **options)
    params = jax.jit(twin.init)(KEY, x)["params"]
    assert jax.tree.map(jnp.shape, pure(nnx.state(stack, nnx.Param))) == jax.tree.map(jnp.shape, params)
    nnx.update(stack, params)
    expected, sown = twin.apply({"params": params}, x, mutable="intermediates")
    np.testing.assert_allclose(stack(x), expected, rtol=1e-5, atol=1e-6)
    y, found = nnx.capture(stack, nnx.Intermediate)(x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert pure(found).keys() == sown["intermediates"].keys()
    with pytest.raises(ValueError, match=r"x is of shape \(2, 16\); the stack, .*, is 5 wide"):
        native.HighwayStack(5, 16, rngs=nnx.Rngs(0))(jnp.ones((2, 16)))
    with pytest.raises(ValueError, match="layers is 0; it must be at least 1"):
        native.HighwayStack(3, 0, rngs=nnx.Rngs(0))


def test_a_residual_branch_shows_what_it_adds():
    y, found = nnx.capture(native.Skippable(), nnx.Intermediate)(jnp.ones(3), jnp.full(3, 2.0))
    np.testing.assert_array_equal(y, 3)
    assert pure(found).keys() == {"block_state", "transform_gate", "carry_gate", "block_output"}
    with pytest.raises(ValueError, match="they must have the same shape"):
        native.Skippable()(jnp.ones(3), jnp.ones(2))
