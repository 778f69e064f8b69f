"""The kernels of convolutions compute what XLA computes."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import ScopeParamShapeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from highway_jax import ConvNet, HighwayConv
from highway_jax import nnx as for_nnx
from highway_jax.functional.convolution import conv, fused_highway
from highway_jax.native import COMPILERS

NAMES = "highway_convolution", "highway_convolution_kernel"
pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not any(map(shutil.which, COMPILERS)), reason="needs a CPU and a C++ compiler"
)


def normal(seed, *shapes):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]


def output_and_gradients(implementation, x, kernel, strides, padding):
    def both(*args):
        y, pullback = jax.vjp(functools.partial(run, implementation=implementation), *args)
        return y, *pullback(jnp.asarray(np.random.default_rng(0).normal(size=y.shape), jnp.float32))

    run = functools.partial(conv, window_strides=strides, padding=padding)
    compiled = jax.jit(both).lower(x, kernel).compile()
    return compiled(x, kernel), compiled.as_text()


def assert_close(ours, reference, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance * np.abs(b).max(initial=0))


sizes, small = st.integers(1, 9), st.integers(1, 4)


@settings(max_examples=12)
@example(0, 2, (4, 5), 80, (3, 3), 80, (1, 1), "SAME")
@example(1, 33, (5, 3), 16, (3, 3), 100, (1, 1), "SAME")  # of several groups of images
@example(2, 2, (7, 9), 3, (5, 5), 33, (1, 1), "VALID")
@example(3, 3, (8, 7), 20, (1, 1), 130, (1, 1), "SAME")
@example(4, 2, (9, 8), 4, (3, 2), 5, (2, 3), [(1, 2), (0, 1)])
@example(5, 1, (1, 1), 1, (1, 2), 1, (1, 2), "VALID")  # without any window
@given(
    st.integers(0, 2**32 - 1), small, st.tuples(sizes, sizes), st.integers(1, 40), st.tuples(small, small),
    st.integers(1, 90), st.tuples(small, small),
    st.sampled_from(["SAME", "VALID", [(0, 1), (2, 0)], [(-1, 1), (0, 0)]]),
)  # fmt: skip
def test_a_convolution_and_its_gradients_are_xlas(seed, batch, image, channels, window, features, strides, padding):
    x, kernel = normal(seed, (batch, *image, channels), (*window, channels, features))
    (ours, text), (reference, _) = (
        output_and_gradients(name, x, kernel, strides, padding) for name in ("fused", "xla")
    )
    assert_close(ours, reference)
    if padding == "SAME" and max(strides) == 1:
        assert all(f'custom_call_target="{name}"' in text for name in NAMES)


def test_it_has_derivatives_of_both_modes_and_any_order():
    args = normal(0, (2, 4, 5, 3), (3, 2, 3, 2))
    check_grads(
        functools.partial(conv, window_strides=(1, 2), padding="SAME", implementation="fused"), args, 2, rtol=0.02
    )


@pytest.mark.parametrize(("axes", "runs"), [((0, None), 2), ((None, 0), 2), ((0, 0), 2), ((2, 1), 2), ((0, None), 0)])
def test_it_can_be_mapped(axes, runs):
    x, kernel = normal(0, (3, 4, 5, 6), (3, 3, 6, 2))
    args = [
        array if axis is None else jnp.stack([array, -2 * array], axis).take(jnp.arange(runs), axis)
        for array, axis in zip((x, kernel), axes, strict=True)
    ]

    def gradients(implementation):
        def loss(*args):
            return jnp.sin(conv(*args, (1, 1), "SAME", implementation=implementation)).sum()

        return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), axes))(*args)

    assert_close(gradients("fused"), gradients("xla"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "kernel"])
def test_nan_and_infinities_go_where_xla_has_them(value, where):
    x, kernel = normal(0, (2, 5, 6, 3), (3, 3, 3, 17))
    if where == "x":
        x = x.at[1, 2, 3, 1].set(value)
    else:
        kernel = kernel.at[0, 2, 1, 16].set(value)  # times zeros, where it is beyond the image
    (ours, _), (reference, _) = (output_and_gradients(name, x, kernel, (1, 1), "SAME") for name in ("fused", "xla"))
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_array_equal(a[np.isinf(b)], b[np.isinf(b)])


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": jnp.bfloat16},
        {"feature_group_count": 2},
        {"rhs_dilation": (2, 1)},
        {"lhs_dilation": (1, 2), "padding": [(1, 1), (1, 1)]},
        {"preferred_element_type": jnp.float32},
        {"padding": [(-1, 1), (0, 0)]},
        {"padding": [(3, 3), (0, 0)]},
        {"shape": (2, 9, 4)},
    ],
    ids=str,
)
def test_what_the_kernels_do_not_compute_is_xlas(options):
    x, kernel = normal(0, options.get("shape", (2, 6, 7, 4)), (3, 3, 4, 4))
    kernel = kernel[0] if x.ndim == 3 else kernel
    if "feature_group_count" in options:
        kernel = kernel[:, :, :2]
    x, kernel = (array.astype(options.get("dtype", jnp.float32)) for array in (x, kernel))
    rest = {name: value for name, value in options.items() if name not in ("dtype", "shape", "padding")}
    args = x, kernel, (1,) * (x.ndim - 2), options.get("padding", "SAME")
    run = functools.partial(conv, window_strides=args[2], padding=args[3], implementation="fused", **rest)
    ours, text = run(x, kernel), jax.jit(run).lower(x, kernel).as_text()
    assert_close(ours, conv(*args, **rest), 1e-2 if "dtype" in options else 1e-5)
    assert ours.dtype == x.dtype and "highway_convolution" not in text


def layer(seed=0, batch=3, image=(5, 4), channels=18, window=(3, 3)):
    x, *affine = normal(seed, (batch, *image, channels), *((*window, channels, channels), (channels,)) * 2)
    return x, *((kernel / 8, bias) for kernel, bias in (affine[:2], affine[2:]))


def as_params(h, t):
    return {name: {"kernel": kernel, "bias": bias} for name, (kernel, bias) in {"h": h, "t": t}.items()}


def highway_gradients(net, x, h, t):
    """Of its output, its gates and all."""
    variables = {"params": as_params(h, t)}

    def states(variables, x):
        y, sown = net.apply(variables, x, mutable="intermediates")
        return y, sown["intermediates"]["transform_gate"][0]

    def both(variables, x):
        (y, gate), pullback = jax.vjp(states, variables, x)
        return y, gate, pullback((jnp.cos(y), jnp.zeros_like(gate))), pullback((jnp.cos(y), gate))

    alone = jax.jit(jax.value_and_grad(lambda *args: jnp.sin(net.apply(*args)).sum(), (0, 1))).lower(variables, x)
    return alone.compile()(variables, x), jax.jit(both)(variables, x), alone.as_text()


@settings(max_examples=6)
@example(0, 40, (3, 3), 20, (3, 3), "relu")
@example(1, 2, (8, 5), 80, (1, 1), "tanh")
@given(
    st.integers(0, 2**32 - 1), small, st.tuples(sizes, sizes), st.integers(1, 40), st.tuples(small, small),
    st.sampled_from(["relu", "tanh"]),
)  # fmt: skip
def test_a_highway_layer_and_its_gradients_are_xlas(seed, batch, image, channels, window, activation):
    args = layer(seed, batch, image, channels, window)
    ours, reference = (
        highway_gradients(HighwayConv(window, activation, implementation=name), *args) for name in ("fused", "xla")
    )
    assert_close(ours[:2], reference[:2], 3e-5)
    assert "highway_convolution_forward" in ours[2] and "highway_convolution_backward" in ours[2]
    assert "highway_convolution" not in reference[2]


@pytest.mark.parametrize(
    ("options", "is_fused"),
    [({}, True), ({"carry": "independent"}, False), ({"strides": 2}, False), ({"features": 4}, False),
     ({"activation": jax.nn.silu}, False), ({"dtype": jnp.bfloat16}, False)],
)  # fmt: skip
def test_layers_of_both_libraries_are_fused_where_they_can_be(options, is_fused):
    x = layer(channels=6)[0]
    both = HighwayConv(implementation="fused", **options), HighwayConv(**options)
    variables = both[0].init(jax.random.key(0), x)
    assert ("highway_convolution_forward" in jax.jit(both[0].apply).lower(variables, x).as_text()) == is_fused
    assert_close(both[0].apply(variables, x), both[1].apply(variables, x), 1e-2 if "dtype" in options else 1e-5)
    options = {("out_features" if name == "features" else name): value for name, value in options.items()}
    ours, theirs = (
        for_nnx.HighwayConv(6, rngs=nnx.Rngs(0), implementation=name, **options) for name in ("fused", "xla")
    )
    assert_close(ours(x), theirs(x), 1e-2 if "dtype" in options else 1e-5)
    assert ("highway_convolution_forward" in str(jax.make_jaxpr(ours)(x))) == is_fused


@pytest.mark.parametrize("changed", [{"window": (5, 5)}, {"channels": 20}, {"channels": 2}])
def test_arrays_that_do_not_fit_are_refused(changed):
    x, h, t = layer(channels=6)
    _, other, _ = layer(**{"channels": 6} | changed)
    for pair in (other, t), (h, other), (other, other):
        with pytest.raises(ScopeParamShapeError):
            HighwayConv(implementation="fused").apply({"params": as_params(*pair)}, x)
    assert fused_highway(x, h, (t[0], t[1][:1]), "relu") is None
    if "channels" in changed:
        with pytest.raises(ValueError, match="feature dimension"):
            conv(x, other[0], (1, 1), "SAME", implementation="fused")


@pytest.mark.parametrize("args", [((1, 1), [(1, 1)]), ((1, 1), 2), ((1,), "SAME")], ids=str)
def test_what_xla_refuses_is_refused_likewise(args):
    arrays = normal(0, (2, 6, 7, 4), (3, 3, 4, 4))
    refusals = []
    for run in (
        functools.partial(conv, implementation="fused"),
        functools.partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")),
    ):
        with pytest.raises((TypeError, ValueError)) as refusal:
            jax.eval_shape(lambda x, kernel, run=run: run(x, kernel, *args), *arrays)
        refusals.append(str(refusal.value))
    assert refusals[0] == refusals[1]


def test_it_is_xlas_without_jit_and_where_float64_is_the_default():
    x, h, t = layer(channels=6)

    def loss(params, x, name):
        y, sown = HighwayConv(implementation=name).apply({"params": params}, x, mutable="intermediates")
        return jnp.sum(conv(y, h[0], (1, 1), "SAME", implementation=name) + sown["intermediates"]["transform_gate"][0])

    gradients = jax.grad(loss, (0, 1))
    for mode in jax.disable_jit, jax.enable_x64:
        with mode(True):
            assert_close(*(gradients(as_params(h, t), x, name) for name in ("fused", "xla")), 3e-5)


@pytest.mark.parametrize("kind", ["checked", "unchecked", "explicit"])
def test_it_is_xlas_where_devices_divide_a_batch(kind, two_devices):
    x, h, t = layer(batch=4, channels=6)
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Explicit if kind == "explicit" else AxisType.Auto,))
    whole, part = PartitionSpec(), PartitionSpec("data")

    def gradients(params, x, name="fused"):
        def loss(params, x):
            y = HighwayConv(implementation=name).apply({"params": params}, x)
            return jnp.sin(conv(y, h[0], (1, 1), "SAME", implementation=name)).sum()

        return jax.grad(loss, (0, 1))(params, x)

    def summed(*args):
        dparams, dx = gradients(*args)
        return (jax.lax.psum(dparams, "data") if kind == "unchecked" else dparams), dx

    args = as_params(h, t), x
    if kind == "explicit":
        with jax.set_mesh(mesh):
            found = jax.jit(gradients)(*map(jax.device_put, args, (whole, part)))
        assert found[1].sharding.spec[0] == "data"
    else:
        specs = whole, part
        found = jax.jit(jax.shard_map(summed, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=kind == "checked"))(
            *args
        )
    assert_close(found, gradients(*args, "xla"), 3e-5)


def network_gradients(net, params, x):
    return jax.value_and_grad(lambda params: jnp.sin(net.apply(params, x)).sum())(params)


def test_a_network_is_the_same_alone_among_others_and_with_any_number_of_threads(monkeypatch):
    net = ConvNet(("conv 18 3x3", "2 highway 3x3", "maxpool 2x2", "highway 1x1"), 3, implementation="fused")
    (x,) = normal(0, (40, 8, 8, 2))
    keys = jax.random.split(jax.random.key(0), 3)
    population = jax.vmap(lambda key: net.init(key, x))(keys)
    one = jax.tree.map(lambda leaf: leaf[1], population)
    among = jax.jit(jax.vmap(functools.partial(network_gradients, net), (0, None)))(population, x)
    for devices in 1, 10**6:  # which share the threads
        monkeypatch.setattr(jax, "local_device_count", lambda platform, devices=devices: devices)
        alone = jax.jit(functools.partial(network_gradients, net), compiler_options={})(one, x)
        jax.clear_caches()
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1]), alone, among)


def test_it_is_exported_as_xlas(two_devices):
    net = ConvNet(("conv 4 3x3", "highway 3x3"), 3, implementation="fused")
    (x,) = normal(0, (2, 5, 5, 1))
    params = net.init(jax.random.key(0), x)
    gradients = functools.partial(network_gradients, net)
    exported = jax.export.export(jax.jit(gradients), platforms=["cpu", "tpu", "cuda"])(params, x)
    assert "@highway_convolution" not in exported.mlir_module()
    assert_close(exported.call(params, x), gradients(params, x), 3e-5)


def test_what_there_is_no_kernel_for_is_told():
    x, h, t = layer()
    assert fused_highway(x, h, t, jnp.tanh) is None
    assert fused_highway(x.astype(jnp.float16), h, t, "tanh") is None
    with pytest.raises(ValueError, match="implementation is 'onednn'; it must be 'xla' or 'fused'"):
        conv(x, h[0], (1, 1), "SAME", implementation="onednn")
    with pytest.raises(ValueError, match="implementation is 'onednn'; it must be 'xla' or 'fused'"):
        ConvNet(("highway 3x3",), implementation="onednn").init(jax.random.key(0), x)
