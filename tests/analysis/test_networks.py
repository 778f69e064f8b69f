import functools
import io
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from highway_jax import (
    MLP,
    ConvNet,
    Highway,
    HighwayConv,
    HighwayDense,
    HighwayStack,
    Kind,
    PlainConv,
    PlainDense,
    Skippable,
    analysis,
    parallel,
)
from highway_jax.analysis import plots as gate_plots
from highway_jax.functional.activations import gate
from highway_jax.functional.ops import resize

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
SPLIT = {"x": rng.integers(0, 255, (37, 6, 5, 1), np.uint8), "y": rng.integers(0, 3, 37).astype(np.int32)}


def scale(images):
    return jnp.asarray(images, jnp.float32) / 255


class Mixed(nn.Module):
    """Eleven convolutional layers of two widths and a dense one: more than sorting by name would keep in order."""

    carry: str = "coupled"

    @nn.compact
    def __call__(self, x):
        x = PlainConv(4)(x)
        for _ in range(9):
            x = HighwayConv((3, 3), transform_bias=-0.5, carry=self.carry)(x)
        x = PlainConv(2, (1, 1))(x)
        for _ in range(2):
            x = HighwayConv((1, 1), transform_bias=-0.5, carry=self.carry)(x)
        x = HighwayDense("tanh", transform_bias=-0.5, carry=self.carry)(x.mean(axis=(1, 2)))
        return nn.Dense(3)(x)


def mlp(**options):
    return MLP(depth=7, width=5, num_classes=3, activation="tanh", transform_bias=-0.5, **options)


def initialized(model):
    """Random weights and biases, so that no two layers and no two gates are alike."""
    shapes = jax.eval_shape(model.init, KEY, scale(SPLIT["x"][:1]))["params"]
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda leaf: jnp.asarray(draw(scale=0.4, size=leaf.shape), leaf.dtype), shapes)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
    return model.apply({"params": params}, scale(SPLIT["x"]))


@functools.partial(jax.jit, static_argnums=0)
def sown(model, params):
    return model.apply({"params": params}, scale(SPLIT["x"]), mutable="intermediates")


def performance(model, params):
    outputs = logits(model, params)
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, SPLIT["y"])
    return float(loss.mean()), float((outputs.argmax(-1) != SPLIT["y"]).mean())


@pytest.mark.parametrize("kind", ["highway", "independent"])
def test_a_lesion_is_the_network_without_the_layer(kind):
    model, shorter = mlp(kind=kind), mlp(kind=kind).clone(depth=6)
    params = initialized(model)
    lesions = analysis.lesion(model, params, SPLIT, preprocess=scale)
    np.testing.assert_allclose((lesions.intact_loss, lesions.intact_error), performance(model, params), rtol=1e-6)
    for layer in range(6):
        rest = jax.tree.map(lambda leaf: np.delete(leaf, layer, axis=0), params["layers"])  # noqa: B023
        without = {**params, "layers": rest}
        closed = analysis.close_gates(model, params, scale(SPLIT["x"]), np.arange(6) == layer)
        np.testing.assert_array_equal(logits(model, closed), logits(shorter, without))  # y = h * 0 + x * 1, bit for bit
        expected = performance(shorter, without)
        np.testing.assert_allclose((lesions.loss[layer], lesions.error[layer]), expected, rtol=1e-6)
    assert len(set(lesions.loss.tolist())) == 6


class Residual(nn.Module):
    """Pre-norm residual branches, some of which are left out."""

    left_out: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(7)(x.reshape(len(x), -1))
        for layer in range(4):
            branch = nn.Sequential([nn.LayerNorm(), nn.relu, nn.Dense(7)], name=f"branch{layer}")
            h = branch(x)
            x = x if layer in self.left_out else Skippable()(x, h)
        return nn.Dense(3)(x)


def test_residual_branches_are_lesioned_where_they_are_skippable():
    params = initialized(Residual())
    lesions = analysis.lesion(Residual(), params, SPLIT, preprocess=scale)
    for layer in range(4):
        expected = performance(Residual((layer,)), params)
        np.testing.assert_allclose((lesions.loss[layer], lesions.error[layer]), expected, rtol=1e-6)
    gates = analysis.gate_statistics(Residual(), params, SPLIT, preprocess=scale)
    assert (gates.mean == 1).all()
    np.testing.assert_array_equal(gates.open_layers, 4)
    with pytest.raises(ValueError, match=r"x is of shape \(2, 3\) and h of shape \(2, 1\)"):
        Skippable().apply({}, np.ones((2, 3)), np.ones((2, 1)))


def test_a_network_of_ones_own_has_a_stack_in_it():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(7)(x.reshape(len(x), -1)))
            return nn.Dense(3)(HighwayStack(5, transform_bias=-2.0)(x))

    params = jax.jit(Net().init)(KEY, scale(SPLIT["x"]))["params"]
    assert params["HighwayStack_0"]["kernel"].shape == (5, 7, 14)
    gates = analysis.gate_statistics(Net(), params, SPLIT, preprocess=scale)
    np.testing.assert_array_equal(gates.bias, np.full((5, 7), -2, np.float32))
    np.testing.assert_allclose(sown(Net(), params)[0], logits(Net(), params), rtol=1e-5, atol=1e-6)
    assert len(analysis.lesion(Net(), params, SPLIT, preprocess=scale).loss) == 5


MIXED = [f"HighwayConv_{index}" for index in range(11)] + ["HighwayDense_0"]
STAGES = ("conv 3 3x3", "2 highway 3x3", "dropout 0.5", "highway 5 3x3 /2", "maxpool 2x2", "highway 1x1", "dense 4")
CONVNET = ConvNet(STAGES, num_classes=3, activation="tanh", transform_bias=-0.5)


@pytest.mark.parametrize(
    ("model", "names", "skipped"),
    [(Mixed(), MIXED, 4), (Mixed("independent"), MIXED, 4), (CONVNET, ["layer2", "layer3", "layer4", "layer5"], 2)],
    ids=["coupled", "independent", "ConvNet"],
)
def test_any_networks_layers_are_lesioned_in_the_order_of_application(model, names, skipped):
    params = initialized(model)
    lesions = analysis.lesion(model, params, SPLIT, preprocess=scale, batch_size=10)
    for layer, name in enumerate(names):
        by_hand = jax.tree.map(jnp.array, params)
        by_hand[name]["t"]["bias"] -= jnp.inf
        if "c" in by_hand[name]:
            by_hand[name]["c"]["bias"] += jnp.inf
        np.testing.assert_allclose((lesions.loss[layer], lesions.error[layer]), performance(model, by_hand), rtol=1e-5)
    assert len(lesions.loss) == len(names)

    def skip(call, args, kwargs, context):
        layer = context.module
        if layer.name != names[skipped]:
            return call(*args, **kwargs)
        return resize(args[0], layer.features or args[0].shape[-1], layer.strides)  # of most layers, args[0]

    with nn.intercept_methods(skip):
        shorter = jax.jit(lambda p: model.apply({"params": p}, scale(SPLIT["x"])))(params)
    closed = analysis.close_gates(model, params, scale(SPLIT["x"]), np.arange(len(names)) == skipped)
    np.testing.assert_allclose(logits(model, closed), shorter, rtol=1e-5, atol=1e-6)


def test_mapped_lesions_are_single_ones_whatever_the_batches_and_devices(two_devices):
    model = mlp(kind="independent")
    params = initialized(model)
    one = parallel.runs_mesh(jax.devices()[:1])
    for batch_size, mesh in (37, one), (10, None), (1000, None):
        lesions = analysis.lesion(model, params, SPLIT, preprocess=scale, batch_size=batch_size, mesh=mesh)
        for layer in range(6):
            closed = analysis.close_gates(model, params, scale(SPLIT["x"]), np.arange(6) == layer)
            expected = performance(model, closed)
            np.testing.assert_allclose((lesions.loss[layer], lesions.error[layer]), expected, rtol=2e-6)


def test_dropping_layers_goes_from_the_whole_network_to_none_of_it():
    model = mlp()
    params = initialized(model)
    lesions = analysis.lesion(model, params, SPLIT, preprocess=scale)
    dropped = analysis.drop_layers(model, params, SPLIT, lesions.order, preprocess=scale, batch_size=16)
    order = lesions.order
    assert dropped.loss.shape == dropped.error.shape == (7,)
    np.testing.assert_allclose(dropped.loss[:2], (lesions.intact_loss, lesions.loss.min()), rtol=1e-6)
    for k in range(7):
        closed = analysis.close_gates(model, params, scale(SPLIT["x"]), np.isin(np.arange(6), order[:k]))
        np.testing.assert_allclose((dropped.loss[k], dropped.error[k]), performance(model, closed), rtol=1e-6)
    for wrong in ([0, 1], [0, 1, 2, 3, 4, 4]):
        with pytest.raises(ValueError, match=r"order is \[0, 1.*each of the layers 0 to 5 once"):
            analysis.drop_layers(model, params, SPLIT, wrong)


def test_the_statistics_are_those_of_the_gates():
    model = mlp()
    params = initialized(model)
    inside = sown(model, params)[1]["intermediates"]
    gates = np.asarray(inside["layers"]["transform_gate"][0])
    found = analysis.gate_statistics(model, params, SPLIT, preprocess=scale, batch_size=10)
    np.testing.assert_array_equal(found.bias, params["layers"]["bias"][:, 5:])
    np.testing.assert_allclose(found.mean, gates.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.open_fraction, (gates > 0.5).mean(axis=1), rtol=1e-6)
    assert 0 < found.open_fraction.mean() < 1
    np.testing.assert_allclose(found.open_layers, gates.mean(axis=2).sum(axis=0), rtol=1e-5)
    for label in range(3):
        np.testing.assert_allclose(found.class_mean[label], gates[:, SPLIT["y"] == label].mean(axis=1), rtol=1e-5)
    sample = analysis.inner_states(model, params, SPLIT["x"][4], preprocess=scale)
    states = {name: np.asarray(inside["layers"][name][0])[:, 4] for name in sample._fields[:-1]}
    first = PlainDense(model.width, model.activation).apply(
        {"params": params["input"]}, scale(SPLIT["x"][4:5]).reshape(1, -1)
    )
    states["block_input"] = np.concatenate([first, states["block_output"][:-1]])
    for name, value in sample._asdict().items():
        np.testing.assert_allclose(value, states[name], rtol=1e-4, atol=1e-6)


def test_inputs_of_single_layers_follow_from_the_highway_operation():
    class Saturated(nn.Module):
        """A convolutional layer, whose carry gate is closed at one pixel, and a dense one."""

        @nn.compact
        def __call__(self, x):
            y = HighwayConv((1, 1), transform_bias=-0.5)(
                jnp.concatenate([x, jnp.zeros_like(x).at[:, 0, 0].set(60)], -1)
            )
            z = y.mean(axis=(1, 2))
            self.sow("intermediates", "z", z)
            return nn.Dense(3)(HighwayDense("tanh", transform_bias=-0.5)(z))

    model, image = Saturated(), SPLIT["x"][4]
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.3), initialized(model))
    found = analysis.inner_states(model, params, image, preprocess=scale)
    pixels = np.stack([scale(image)[..., 0], np.zeros((6, 5))], -1).reshape(-1, 2)[1:]
    np.testing.assert_allclose(found.block_input[0], pixels.mean(axis=0), rtol=1e-3, atol=1e-4)
    z = model.apply({"params": params}, scale(image)[None], mutable="intermediates")[1]["intermediates"]["z"][0]
    np.testing.assert_allclose(found.block_input[1], z[0], rtol=1e-3)


def test_feature_maps_are_averaged_over_space_and_narrow_layers_end_in_nan():
    model = Mixed()
    params = initialized(model)
    inside = sown(model, params)[1]["intermediates"]
    found = analysis.gate_statistics(model, params, SPLIT, preprocess=scale)
    assert found.mean.shape == (12, 4)
    for layer in range(11):
        width = 4 if layer < 9 else 2
        state = inside[f"HighwayConv_{layer}"]["transform_gate"][0]
        np.testing.assert_allclose(found.mean[layer, :width], state.mean(axis=(0, 1, 2)), rtol=1e-5)
        np.testing.assert_array_equal(found.bias[layer, :width], params[f"HighwayConv_{layer}"]["t"]["bias"])
        assert np.isnan(found.mean[layer, width:]).all()
        assert np.isnan(found.class_mean[:, layer, width:]).all()
    assert np.isfinite(found.open_layers).all()


@settings(max_examples=5)
@given(labels=arrays(np.int32, 12, elements=st.integers(0, 4)), batch_size=st.integers(1, 15))
def test_the_mean_over_samples_is_that_over_classes_weighted_by_their_size(labels, batch_size):
    model = MLP(depth=3, width=4, transform_bias=-0.5)
    split = {"x": SPLIT["x"][:12], "y": labels}
    found = analysis.gate_statistics(model, initialized(model), split, preprocess=scale, batch_size=batch_size)
    assert found.class_size.tolist() == [int((labels == label).sum()) for label in range(labels.max() + 1)]
    assert [np.isnan(m).all() for m in found.class_mean] == [size == 0 for size in found.class_size]
    weighted = np.nansum(found.class_mean * found.class_size[:, None, None], axis=0) / 12
    np.testing.assert_allclose(found.mean, weighted, rtol=1e-5)
    np.testing.assert_allclose(found.open_layers.mean(), found.mean.mean(axis=1).sum(), rtol=1e-5)


@pytest.mark.parametrize("layer", [HighwayDense("tanh"), HighwayConv((3, 3))])
def test_a_gate_forced_open_gives_h(layer):
    x = scale(SPLIT["x"])
    params = layer.init(KEY, x)["params"]
    params["t"]["bias"] += jnp.inf
    states = analysis.inner_states(layer, params, SPLIT["x"][0], preprocess=scale)
    np.testing.assert_array_equal(states.block_output, states.block_state)
    plain = PlainDense(1, "tanh") if isinstance(layer, HighwayDense) else PlainConv(1)
    np.testing.assert_allclose(
        layer.apply({"params": params}, x), plain.apply({"params": {"h": params["h"]}}, x), rtol=1e-6
    )


@given(arrays(np.float64, 6, elements=st.floats(0, 10, width=16)), st.floats(0.1, 10), st.permutations(range(6)))
def test_the_effective_number_of_layers_counts_them(damage, factor, order):
    count = analysis.effective_layers(damage)
    assert count == 0 if not damage.any() else 1 - 1e-9 <= count <= np.count_nonzero(damage) + 1e-9
    np.testing.assert_allclose(analysis.effective_layers(factor * damage[list(order)]), count, rtol=1e-6)
    np.testing.assert_allclose(analysis.effective_layers((damage > 5) * 0.3), np.count_nonzero(damage > 5))


def test_damage_is_a_rise_in_the_loss_that_is_more_than_rounding():
    lesions = analysis.Lesions(np.array([2.0, 3.0, 2.00001, 1.5, np.inf]), np.zeros(5), 2.0, 0.0)
    np.testing.assert_array_equal(lesions.damage, [0, 1, 0, 0, np.inf])
    assert lesions.order.tolist() == [3, 0, 2, 1, 4]


def test_a_network_without_highway_layers_or_with_shared_ones_is_refused():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = HighwayDense(name="shared")
            return layer(layer(x))

    refused = (mlp(kind="plain"), "this MLP has no highway layers"), (Twice(), "layer 'shared' is applied")
    for model, message in refused:
        params = jax.jit(model.init)(KEY, scale(SPLIT["x"]))["params"]
        for function in analysis.lesion, analysis.gate_statistics:
            with pytest.raises(ValueError, match=message):
                function(model, params, SPLIT, preprocess=scale)


def test_a_network_that_has_diverged_has_no_error():
    model = mlp()
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, initialized(model))
    lesions = analysis.lesion(model, params, SPLIT, preprocess=scale)
    assert np.isnan([lesions.intact_error, lesions.intact_loss, *lesions.error, *lesions.loss]).all()
    assert np.isnan(analysis.effective_layers(lesions.damage))


def test_figures_of_networks_of_different_depth_and_width():
    models = {"$x_$, no formula": mlp(), "convnet": CONVNET}
    statistics, states, lesions, dropped = {}, {}, {}, {}
    for name, model in models.items():
        params = initialized(model)
        statistics[name] = analysis.gate_statistics(model, params, SPLIT, preprocess=scale)
        states[name] = analysis.inner_states(model, params, SPLIT["x"][0], preprocess=scale)
        lesions[name] = analysis.lesion(model, params, SPLIT, preprocess=scale)
        dropped[name] = analysis.drop_layers(model, params, SPLIT, lesions[name].order, preprocess=scale)
    figure2 = gate_plots.figure2(statistics, states, dict.fromkeys(models, -0.5))
    shown = [axes.images[0].get_array() for axes in figure2.axes if axes.images]
    for row, name in enumerate(models):
        expected = statistics[name].bias, statistics[name].mean, states[name].transform_gate, states[name].block_output
        for image, values in zip(shown[4 * row : 4 * row + 4], expected, strict=True):
            np.testing.assert_array_equal(image.filled(np.nan), values)
    figure3 = gate_plots.figure3(statistics, classes=(0, 2), layers=3)
    shown = [axes.images[0].get_array() for axes in figure3.axes if axes.images]
    np.testing.assert_array_equal(shown[3].filled(np.nan), statistics["convnet"].routing[2, :3])
    figure4 = gate_plots.figure4(lesions)
    np.testing.assert_array_equal(figure4.axes[1].lines[0].get_ydata(), lesions["convnet"].error)
    figure3 = gate_plots.figure3(statistics)
    assert len([axes for axes in figure3.axes if axes.images]) == 6  # two networks, three classes
    perfect = lesions["$x_$, no formula"]._replace(error=np.zeros(6), intact_error=0.0)
    figures = figure2, figure3, figure4, gate_plots.figure4({"perfect": perfect})
    for figure in (*figures, gate_plots.depth_in_use(statistics, lesions, dropped)):
        figure.savefig(io.BytesIO())


class Inside(nn.Module):
    """Highway layers that `build` makes in this module's compact method, of 8 blocks, and an output layer."""

    build: object

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="input")(x.reshape(len(x), -1))
        return nn.Dense(3, name="output")(self.build()(x))


class Gate(nn.Module):
    """A gate that shows its own activity under the name of a highway layer's."""

    @nn.compact
    def __call__(self, x):
        z = nn.Dense(8)(x)
        self.sow("intermediates", "transform_gate", nn.sigmoid(z))
        return z


class Step(nn.Module):
    build: object

    @nn.compact
    def __call__(self, x, _):
        return self.build()(x), None


class Own(nn.Module):
    """A highway layer of one's own, called as `nn.scan` calls it."""

    @nn.compact
    def __call__(self, x, _=None):
        t = nn.sigmoid(nn.Dense(8, name="t")(x))
        self.sow("intermediates", "transform_gate", t)
        return x + t * (jnp.tanh(nn.Dense(8, name="h")(x)) - x), None


def bare(*gates):
    return Highway(nn.Dense(8), *(nn.Dense(8, use_bias=False) for _ in gates))


def scanned(step):
    axes = {"params": 0, "intermediates": 0}
    steps = nn.scan(step, variable_axes=axes, split_rngs={"params": True}, length=2)
    return lambda x: steps()(x, None)[0]


def gated_residual(names):
    def cell(x, z, phi, transform_bias):
        t = gate(z["t"])
        return {"transform_gate": t, "block_output": x + phi(z["h"]) * t}

    return Kind(cell, lambda bias: {name: bias if name == "t" else 0.0 for name in names})


def two(build):
    return lambda: nn.Sequential([build(), build()])


# By what they are: a network of two highway layers, and whether their gates have biases.
KINDS = {
    "Highway": (Inside(two(lambda: Highway(nn.Dense(8)))), True),
    "T without a bias": (Inside(two(lambda: bare("t"))), False),
    "T and C without biases": (Inside(two(lambda: bare("t", "c"))), False),
    "affine T and C": (Inside(two(lambda: Highway(*(nn.Dense(8) for _ in "htc")))), True),
    "T that sows": (Inside(two(lambda: Highway(nn.Dense(8), Gate()))), False),
    "highway layers in T": (Inside(two(lambda: Highway(nn.Dense(8), HighwayDense()))), False),
    "highway layers in H": (Inside(lambda: Highway(HighwayDense(), nn.Dense(8, use_bias=False))), None),
    "remat": (Inside(two(lambda: nn.remat(Highway)(nn.Dense(8), nn.Dense(8, use_bias=False)))), False),
    "scan": (Inside(lambda: scanned(functools.partial(Step, functools.partial(bare, "t", "c")))), False),
    "scan of HighwayDense": (Inside(lambda: scanned(functools.partial(Step, HighwayDense))), True),
    "scan of one's own": (Inside(lambda: scanned(Own)), True),
    "gated residual blocks": (MLP(3, 8, 3, kind=gated_residual("ht")), True),
    "their maps in another order": (MLP(3, 8, 3, kind=gated_residual("th")), True),
}


@pytest.mark.parametrize(("model", "biased"), KINDS.values(), ids=KINDS)
def test_highway_layers_of_any_kind_are_found_and_can_be_closed(model, biased):
    params = initialized(model)
    statistics = analysis.gate_statistics(model, params, SPLIT, preprocess=scale, batch_size=10)
    assert statistics.mean.shape == (2, 8)
    if biased is not None:
        assert np.isfinite(statistics.bias).all() if biased else np.isnan(statistics.bias).all()
    lesions = analysis.lesion(model, params, SPLIT, preprocess=scale, batch_size=10)
    np.testing.assert_allclose((lesions.intact_loss, lesions.intact_error), performance(model, params), rtol=1e-6)
    assert len(set(np.round([*lesions.loss, lesions.intact_loss], 6))) == (2 if biased is None else 3)
    inputs = scale(SPLIT["x"])
    closed = analysis.close_gates(model, params, inputs, np.ones(2, bool))
    first, last = params["input"].get("h", params["input"]), params["output"]
    x = inputs.reshape(len(inputs), -1) @ first["kernel"] + first["bias"]
    x = jax.nn.relu(x) if isinstance(model, MLP) else x
    expected = x @ last["kernel"] + last["bias"]  # without any highway layer
    np.testing.assert_allclose(logits(model, closed), expected, rtol=1e-5, atol=1e-5)
    states = analysis.inner_states(model, params, SPLIT["x"][0], preprocess=scale)
    assert np.isfinite(states.transform_gate).all()


def test_biases_are_the_gates_own_and_the_layers():
    model = Inside(lambda: Highway(nn.Dense(8), nn.Dense(8), transform_bias=-2.5))
    params = initialized(model)
    found = analysis.gate_statistics(model, params, SPLIT, preprocess=scale).bias
    np.testing.assert_allclose(found[0], params["Highway_0"]["t"]["bias"] - 2.5, rtol=1e-6)


def test_a_layer_that_cannot_be_closed_is_named():
    block = Kind(lambda x, z, phi, b: {"transform_gate": gate(z["u"]), "block_output": x}, lambda b: {"u": b})
    for model, message in (
        (MLP(3, 8, 3, kind=block), "layer 'layers' .* named t"),
        (Inside(Gate), "layer 'Gate_0' .* t/bias"),
    ):
        params = initialized(model)
        assert np.isnan(analysis.gate_statistics(model, params, SPLIT, preprocess=scale).bias).all()
        with pytest.raises(ValueError, match=message):
            analysis.lesion(model, params, SPLIT, preprocess=scale)


@settings(max_examples=3)
@example(samples=7, batch_size=3, nan=True)
@given(samples=st.integers(1, 20), batch_size=st.integers(1, 25), nan=st.booleans())
def test_nothing_depends_on_the_batches_and_only_real_samples_are_preprocessed(samples, batch_size, nan):
    images = np.random.default_rng(samples).integers(1, 255, (samples, 6, 5, 1), np.uint8)
    if nan:
        images[0] = 0
    split = {"x": images, "y": SPLIT["y"][:samples]}

    def relative(images):  # NaN where an image is empty
        images = scale(images)
        return images / images.max(axis=(1, 2, 3), keepdims=True)

    model = MLP(depth=3, width=4, num_classes=3, transform_bias=-0.5)
    params = initialized(model)
    args = model, params, split
    found, whole = (
        analysis.gate_statistics(*args, preprocess=relative, batch_size=size) for size in (batch_size, samples)
    )
    for name in found._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-5)
    assert np.isnan(found.open_layers).tolist() == [nan and sample == 0 for sample in range(samples)]
    others = np.flatnonzero(found.class_size)
    classes = [label for label in others if not nan or label != split["y"][0]]
    assert np.isfinite(found.class_mean[classes]).all()
    found, whole = (analysis.lesion(*args, preprocess=relative, batch_size=size) for size in (batch_size, samples))
    for a, b in zip(found, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert np.isfinite(found.loss).all() != nan


def test_other_outputs_than_logits_are_refused():
    model = mlp().clone(num_classes=1)
    with pytest.raises(ValueError, match=r"outputs of shape \(37, 1\).*at least 2 classes"):
        analysis.lesion(model, initialized(model), SPLIT, preprocess=scale)


def test_the_documented_blocks_run_and_can_be_analysed():
    page = (Path(__file__).parents[2] / "docs/blocks.md").read_text()
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    model = names["model"].clone(depth=3, num_classes=3)
    params = jax.jit(model.init)(KEY, scale(SPLIT["x"]))["params"]
    statistics = analysis.gate_statistics(model, params, SPLIT, preprocess=scale)
    np.testing.assert_array_equal(statistics.bias, np.full((2, 50), -2))
    states = analysis.inner_states(model, params, SPLIT["x"][0], preprocess=scale)
    assert np.isfinite(states.block_output).all()
    assert np.isnan(states.block_state).all()  # it has none of that name
    assert (analysis.lesion(model, params, SPLIT, preprocess=scale).damage >= 0).all()
    x = jax.random.normal(KEY, (2, 5, 64))
    for layer in names["attention"], names["recurrent"]:
        params = jax.jit(layer.init)(KEY, x)["params"]
        states = analysis.inner_states(layer, params, x[0])
        assert states.transform_gate.shape == (1, 64)
