import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from highway_jax import ConvNet, data, parallel, population
from highway_jax.functional import convolution
from highway_jax.functional.convolution import conv
from highway_jax.functional.ops import resize
from highway_jax.functional.pooling import avg_pool, max_pool
from highway_jax.linen.maxout import Maxout
from highway_jax.population.programs import Group
from highway_jax.zoo import optim, paper, parse, stages

KEY = jax.random.key(0)
DIGITS = data.load("digits")
TINY = ("dropout 0.1", "conv 8 3x3", "2 highway 3x3", "maxpool 2x2", "dropout 0.2", "highway 12 3x3 /2")


def shapes(model, *image):
    return jax.eval_shape(model.init, KEY, jnp.ones((1, *image)))["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("net", "image", "num_classes", "parameters", "depth", "tolerance"),
    [
        (paper.MNIST_16, (28, 28, 1), 10, 38_986, 10, 0),
        (paper.MNIST_32, (28, 28, 1), 10, 151_690, 10, 0),
        (paper.CIFAR_GAP, (32, 32, 3), 10, 2_256_838, 19, 0),
        (paper.CIFAR_GAP, (32, 32, 3), 100, 2_256_838 + 90 * 101, 19, 0),
        (paper.HIGHWAY_A, (32, 32, 3), 10, 236_000, 11, 0.03),
        (paper.HIGHWAY_B, (32, 32, 3), 10, 2_300_000, 19, 0.03),
        (paper.HIGHWAY_C, (32, 32, 3), 10, 1_250_000, 32, 0.03),
        (paper.FITNET_A, (32, 32, 3), 10, 250_000, 11, 0.01),
        (paper.FITNET_B, (32, 32, 3), 10, 2_500_000, 19, 0.02),
        (paper.TEACHER, (32, 32, 3), 10, 9_000_000, 5, 0.01),
        (paper.NIN, (32, 32, 3), 10, 966_986, 9, 0),
        (paper.ALL_CNN, (32, 32, 3), 10, 1_369_738, 9, 0),
    ],
)
def test_the_papers_networks_have_its_depths_and_parameter_counts(
    net, image, num_classes, parameters, depth, tolerance
):
    highway = shapes(ConvNet(net, num_classes), *image)
    assert abs(count(highway) - parameters) <= tolerance * parameters
    assert len(highway) == depth
    plain = shapes(ConvNet(net, num_classes, kind="plain"), *image)
    for name, layer in highway.items():  # the plain twin is the network without its gates
        layer.pop("t", None)
        assert layer == plain[name]


WINDOW = st.tuples(st.integers(1, 9), st.integers(1, 9))
SIZE, SMALL = st.integers(1, 999), st.integers(1, 3)
STRIDE = st.none() | st.just(1)
STAGES = st.one_of(
    st.builds(stages.Conv, SIZE, WINDOW, SMALL, st.booleans(), SMALL),
    st.builds(stages.Highway, WINDOW, st.none() | SIZE, SMALL, SMALL),
    st.builds(stages.MaxPool, WINDOW, STRIDE),
    st.builds(stages.AvgPool, WINDOW, STRIDE),
    st.builds(stages.Dropout, st.floats(0, 1, exclude_max=True, allow_subnormal=False)),
    st.builds(stages.Dense, SIZE, SMALL),
    st.builds(stages.Maxout, SIZE, WINDOW, SMALL, st.none() | st.integers(0, 9), SMALL),
    st.builds(stages.Maxout, SIZE, st.none(), SMALL, st.none(), SMALL),
)


@given(STAGES)
def test_a_stage_is_read_back_from_its_text(stage):
    assert parse(str(stage)) == stage


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (("cnv 32 3x3",), "stage 'cnv 32 3x3' must be one of: .*conv FEATURES KxK.*dropout RATE"),
        (("conv 3x3",), "stage 'conv 3x3' must have the form: .COUNT. conv FEATURES KxK"),
        (("highway",), "stage 'highway' must have the form"),
        (("maxpool 3",), "stage 'maxpool 3' must have the form: maxpool KxK"),
        (("dropout",), "stage 'dropout' must have the form: dropout RATE"),
        (("dropout 1.5",), "stage 'dropout 1.5' has the rate 1.5"),
        (("conv 0 3x3",), "stage 'conv 0 3x3' has the features 0"),
        (("maxpool 2x2 /3",), "stage 'maxpool 2x2 /3' has the stride 3"),
        (("maxpool 2x2", "maxpool 5x5"), "stage 'maxpool 5x5' does not fit its input, images of 4x4"),
        (("conv 4 9x9 valid",), "stage 'conv 4 9x9 valid' does not fit its input, images of 8x8"),
        (("dense 5", "highway 3x3"), r"stage 'highway 3x3' needs images.*\(1, 5\)"),
        ((3,), "stage 3 must be one of"),
        (("maxout 3x3",), r"stage 'maxout 3x3' must have the form: .COUNT. maxout FEATURES .of PIECES. .KxK .pad P"),
        (("maxout 4 pad 1",), "stage 'maxout 4 pad 1' must have the form"),
        (("maxout 4 of 0 3x3",), "stage 'maxout 4 of 0 3x3' has the pieces 0; it must be at least 1"),
        (("maxout 4 9x9 pad 0",), "stage 'maxout 4 9x9 pad 0' does not fit its input, images of 8x8"),
        (("maxout 4", "maxout 4 3x3"), r"stage 'maxout 4 3x3' needs images.*\(1, 4\)"),
    ],
)
def test_a_bad_stage_is_named(net, message):
    with pytest.raises(ValueError, match=message) as error:
        shapes(ConvNet(net), 8, 8, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "message"), [({"kind": "lstm"}, "kind"), ({"num_classes": 0}, "num_classes")])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(ConvNet(TINY, **options), 8, 8, 1)


def test_initial_weights_are_those_asked_for():
    net = ConvNet(("conv 64 3x3", "highway 3x3"), 100, transform_bias=jnp.float32(-2.0), output_std=0.05)
    params = net.init(KEY, jnp.ones((1, 8, 8, 1)))["params"]
    assert np.isclose(params["output"]["kernel"].std(), 0.05, rtol=0.02)
    assert np.isclose(params["layer2"]["t"]["kernel"].var(), 2 / (2 * 9 * 64), rtol=0.03)  # Glorot
    np.testing.assert_array_equal(params["layer2"]["t"]["bias"], -2)


def test_the_residual_twin_adds_what_passes_through():
    x = jax.random.normal(KEY, (2, 8, 8, 1))
    net = ConvNet(("highway 3 3x3 /2", "highway 3x3"), kind="residual")
    assert shapes(net, 8, 8, 1) == shapes(net.clone(kind="plain"), 8, 8, 1)
    params = jax.jit(net.init)(KEY, x)["params"]
    closed = params | {name: jax.tree.map(jnp.zeros_like, params[name]) for name in ("layer1", "layer2")}
    passed = resize(x, 3, strides=2).reshape(2, -1)
    logits = passed @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(jax.jit(net.apply)({"params": closed}, x), logits, rtol=1e-5, atol=1e-6)


def test_inner_states_can_be_asked_for():
    x = jax.random.normal(KEY, (2, 8, 8, 1))
    for block in ("highway", "plain"):
        net = ConvNet(TINY, kind=block)
        _, captured = net.apply(net.init(KEY, x), x, mutable="intermediates")
        states = captured["intermediates"]["layer4"]
        assert states["block_output"][0].shape == (2, 2, 2, 12)
        assert ("transform_gate" in states) == (block == "highway")


@st.composite
def convolutions(draw):
    """Shapes and options that JAX accepts."""
    dims, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2]))
    sizes = functools.partial(st.lists, min_size=dims, max_size=dims)
    kernel = draw(sizes(st.integers(1, 4)))
    channels, features = (groups * draw(st.integers(1, 3)) for _ in range(2))
    options = {"window_strides": draw(sizes(st.integers(1, 3))), "feature_group_count": groups}
    if draw(st.booleans()):
        options["rhs_dilation"] = draw(sizes(st.integers(1, 3)))
    options["padding"] = draw(sizes(st.tuples(st.integers(0, 3), st.integers(0, 3))))
    if draw(st.booleans()):
        options["lhs_dilation"] = draw(sizes(st.integers(1, 2)))
    elif draw(st.booleans()):
        options["padding"] = draw(st.sampled_from(["SAME", "VALID", "SAME_LOWER"]))
    if draw(st.booleans()):
        options["preferred_element_type"] = jnp.float32
    image = [draw(st.integers(10, 12)) for _ in range(dims)]  # no smaller than a dilated kernel
    return (2, *image, channels), (*kernel, channels // groups, features), options


@settings(max_examples=8)
@example(((2, 8, 9, 3), (3, 2, 3, 4), {"window_strides": (2, 1), "padding": "SAME"}))
@example(((2, 7, 7, 2), (3, 3, 2, 2), {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 2)}))
@given(convolutions())
def test_a_convolution_and_its_derivatives_are_jaxs_whatever_the_options(case):
    image, kernel, options = case
    dimensions = ("NHWC", "HWIO", "NHWC") if len(image) == 4 else ("NHC", "HIO", "NHC")
    x, kernel = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate((image, kernel)))

    @functools.partial(jax.jit, static_argnums=0)
    def everything(convolve, x, kernel):
        def f(x, kernel):
            return jnp.sin(convolve(x, kernel)).sum()

        return convolve(x, kernel), jax.grad(f, (0, 1))(x, kernel), jax.jvp(jax.grad(f, 1), (x, kernel), (x, kernel))[1]

    ours = everything(functools.partial(conv, **options), x, kernel)
    theirs = everything(functools.partial(lax.conv_general_dilated, **options, dimension_numbers=dimensions), x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_dilation": 2},
        {"padding": "CIRCULAR", "kernel_dilation": (1, 2)},
        {"feature_group_count": 2, "strides": 2},
        {"input_dilation": 2, "padding": 1},
        {"mask": np.arange(3 * 3 * 4 * 4).reshape(3, 3, 4, 4) % 3},
    ],
    ids=",".join,
)
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_flaxs_convolutions_may_use_it_with_all_their_options(kind, options):
    x = jax.random.normal(KEY, (2, 7, 6, 4))
    if kind == "linen":
        nets = [nn.Conv(4, (3, 3), **options, **own) for own in ({}, {"conv_general_dilated": conv})]
        params = nets[0].init(KEY, x)
        applied = [net.apply for net in nets]
    else:
        nets = [
            nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0), **options, **own) for own in ({}, {"conv_general_dilated": conv})
        ]
        (graph, params, rest), (other, _, _) = (nnx.split(net, nnx.Param, ...) for net in nets)
        applied = [lambda params, x, graph=graph: nnx.merge(graph, params, rest)(x) for graph in (graph, other)]
    theirs, ours = (
        jax.jit(jax.value_and_grad(lambda params, x: jnp.sin(f(params, x)).sum(), (0, 1)))(params, x)  # noqa: B023
        for f in applied
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_a_convolutions_gradient_has_xlas_own_order_on_a_cpu():
    # Otherwise it is many times slower in a loop.
    def loss(x, kernel):
        return conv(x, kernel, (2, 1), "SAME").sum()

    x, kernel = jnp.ones((2, 7, 6, 3)), jnp.ones((3, 3, 3, 4))
    text = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert set(re.findall(r"dim_numbers = (.*?->.*?\])", text)) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
    kept = jax.tree.leaves(jax.vjp(lambda *args: conv(*args, (2, 1), "SAME"), x, kernel)[1])
    assert sum(leaf.size for leaf in kept) <= x.size + kernel.size + 1  # in one order


@pytest.mark.parametrize("padding", ["SAME", "VALID", [(1, 2), (-1, 0)]])
@pytest.mark.parametrize(("strides", "dilation"), [((1, 1), (1, 1)), ((2, 3), (1, 1)), ((1, 2), (2, 1))])
def test_the_product_of_all_windows_is_the_convolution(padding, strides, dilation):
    """What a TPU differentiates where an image has few channels."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=size).astype(np.float32) for size in ((2, 9, 8, 3), (3, 2, 3, 4)))
    run = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, rhs_dilation=dilation, precision=None
    )
    theirs = run(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(convolution._of_windows(run, x, kernel), theirs, rtol=1e-4, atol=1e-4)


def test_maxout_is_the_largest_of_its_pieces():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    net = Maxout(4, (3, 2), pieces=3, padding=[(1, 1), (0, 0)])
    variables = net.init(KEY, x)
    kernel = np.asarray(variables["params"]["h"]["kernel"]).reshape(3, 2, 3, 4, 3)
    bias = np.linspace(-1, 1, 12, dtype=np.float32)
    padded = np.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0)])
    windows = np.stack([padded[:, i : i + 5, j : j + 3] for i in range(3) for j in range(2)], 3)
    expected = (np.einsum("bhwkc,kcup->bhwup", windows, kernel.reshape(6, 3, 4, 3)) + bias.reshape(4, 3)).max(-1)
    variables["params"]["h"]["bias"] = bias
    np.testing.assert_allclose(net.apply(variables, x), expected, rtol=1e-4, atol=1e-5)
    one = Maxout(4, pieces=1)  # an affine map
    variables = one.init(KEY, x)
    kernel = variables["params"]["h"]["kernel"]
    np.testing.assert_allclose(one.apply(variables, x), x @ np.asarray(kernel), rtol=1e-4, atol=1e-5)


def test_every_layers_output_can_be_asked_for():
    x = jax.random.normal(KEY, (2, 8, 8, 1))
    net = ConvNet(TINY)
    variables = net.init(KEY, x)
    _, captured = net.apply(variables, x, mutable="intermediates")
    *layers, logits = net.apply(variables, x, method="layer_outputs")
    assert len(layers) == 4
    for number, found in enumerate(layers, start=1):
        np.testing.assert_array_equal(found, captured["intermediates"][f"layer{number}"]["block_output"][0])
    np.testing.assert_array_equal(logits, net.apply(variables, x))


@pytest.mark.parametrize("n", [4, 7])
@pytest.mark.parametrize(("window", "stride"), [((3, 3), 2), ((2, 2), 2), ((4, 3), 3), ((1, 3), 1)])
def test_pooling_rounds_up_and_ignores_what_is_beyond_the_image(n, window, stride):
    # Few values, so that there are equal ones in a window.
    x = np.random.default_rng(n).integers(0, 3, (2, n, n, 2)).astype(np.float32)
    outputs = [int(np.ceil((n - size) / stride)) + 1 for size in window]
    spans = [[slice(i * stride, i * stride + size) for i in range(o)] for o, size in zip(outputs, window, strict=True)]
    parts = [[x[:, rows, columns] for columns in spans[1]] for rows in spans[0]]
    for pool, reference in (max_pool, np.max), (avg_pool, np.mean):
        expected = np.stack([np.stack([reference(p, axis=(1, 2)) for p in row], 1) for row in parts], 1)
        np.testing.assert_allclose(jax.jit(pool, static_argnums=(1, 2))(x, window, stride), expected, rtol=1e-6)

    def xlas(x):
        pads = [(0, 0), *((0, (o - 1) * stride + size - n) for o, size in zip(outputs, window, strict=True)), (0, 0)]
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, stride, stride, 1), pads)

    dy = np.random.default_rng(0).integers(1, 9, (2, *outputs, 2)).astype(np.float32)
    pools = lambda x: max_pool(x, window, stride), xlas
    ours, theirs = (jax.jit(jax.grad(lambda x: (f(x) * dy).sum()))(x) for f in pools)  # noqa: B023
    np.testing.assert_array_equal(ours, theirs)


def test_a_diverged_networks_nan_survives_pooling():
    x = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x, (2, 2), 1)).all()


def rescaled(batch):
    return {**batch, "x": data.rescale(batch["x"], 16)}


def cropped(key, batch):
    return {**batch, "x": data.random_crop(key, batch["x"], 1)}


def task(optimizer):
    return population.supervised(
        lambda hp: ConvNet(TINY, activation=hp["activation"], transform_bias=hp["bias"]), population.cross_entropy,
        optimizer, preprocess=rescaled, augment=cropped,
    )  # fmt: skip


TASK = task(lambda hp: optim.nesterov(optim.step_decay(hp["rate"], 0.1, (5,), 60), 0.9, 1e-3))
SPACE = {
    "rate": population.uniform(0.03, 0.06), "activation": population.choice("relu", "tanh"),
    "bias": population.uniform(-2, -1),
}  # fmt: skip
SOME = {name: array[:600] for name, array in DIGITS.train.items()}


def test_a_population_of_convolutional_networks_learns_and_is_its_runs_alone():
    fit = functools.partial(population.fit, TASK, SPACE, train=SOME, batch_size=10, progress=False)
    curves = fit(num_runs=2, epochs=5).curves["train_loss"]
    assert (curves[:, -1] < 0.8 * curves[:, 0]).all()
    alone = fit(num_runs=1, first_run=1, epochs=2, mesh=parallel.runs_mesh(jax.devices()[:1]))
    np.testing.assert_array_equal(alone.curves["train_loss"][0], curves[1, :2])


def test_randomness_is_the_runs_the_epochs_and_the_steps_own_and_absent_from_evaluation():
    """Of a network that does not change, at one learning rate of zero, from one key or from two."""
    frozen = task(lambda hp: optax.sgd(0.0))
    batch = {name: array[:20] for name, array in DIGITS.train.items()}
    same = {"activation": 0, "bias": -1.0}
    result = population.fit(
        frozen, same, train=batch, evaluate={"same": batch}, num_runs=2, seeds=2, epochs=2, batch_size=20,
        progress=False, keep="all",
    )  # fmt: skip
    train, same = result.curves["train_loss"], result.curves["same_loss"]
    assert len(set(train.ravel())) == 4  # each run's and epoch's own
    np.testing.assert_array_equal(same[:, 0], same[:, 1])
    hp, state = {"activation": 0, "bias": -1.0}, result.run(0).state
    step, evaluate = jax.jit(frozen.step), jax.jit(frozen.evaluate)
    losses = [step(hp, state, batch, jax.random.key(seed))[1]["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    logits = ConvNet(TINY, transform_bias=-1.0).apply({"params": state.params}, rescaled(batch)["x"])
    np.testing.assert_allclose(evaluate(hp, state, batch)["loss"], population.cross_entropy(logits, batch), rtol=1e-4)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_epoch_lowers_for_accelerators(platform):
    search = population.Search(
        task=TASK, space=population.Space(SPACE), train=SOME, num_runs=2, epochs=1, batch_size=50
    )  # fmt: skip
    group = Group(search, {}, parallel.runs_mesh(jax.devices()[:1]))
    members = group.start(search.drawn, np.arange(2))
    exported = jax.export.export(group.programs.train, platforms=[platform])(members, group.batches, 2)
    assert exported.platforms == (platform,)
