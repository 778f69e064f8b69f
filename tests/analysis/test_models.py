"""The analysis of models of any kind: Linen with further collections, NNX, and scores of one's own."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from highway_jax import Highway, HighwayConv, HighwayDense, HighwayStack, Skippable, analysis, linen, population
from highway_jax import nnx as native
from highway_jax.analysis import plots
from highway_jax.nnx.variables import plain

RNG = np.random.default_rng(0)
SPLIT = {"x": RNG.normal(size=(37, 6, 5, 1)).astype(np.float32), "y": RNG.integers(0, 3, 37).astype(np.int32)}
VECTORS = {"x": RNG.normal(size=(37, 5)).astype(np.float32), "y": RNG.normal(size=37).astype(np.float32)}


def drawn(shapes):
    """Random values, so that no two layers and no two gates are alike; those of batch statistics are positive."""
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda leaf: jnp.asarray(abs(draw(scale=0.4, size=leaf.shape)), leaf.dtype), shapes)


def performance(outputs, split=SPLIT):
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, split["y"])
    return float(loss.mean()), float((outputs.argmax(-1) != split["y"]).mean())


def squared(outputs, batch):
    return (outputs - batch["y"]) ** 2


def same(found, expected):
    for name in found._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6, err_msg=name)


def frozen(module):
    """All that an NNX module is, its attributes and its arrays' bytes."""
    graph, state = nnx.split(module)
    return graph, jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), plain(state))


class Normalized(nn.Module):
    """Batch normalization and dropout around three highway layers, one of which may be left out."""

    left_out: int | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x.reshape(len(x), -1)))
        for layer in range(3):
            y = HighwayDense(name=f"highway{layer}")(x)
            x = x if layer == self.left_out else y
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


@pytest.mark.parametrize("names", ["", "t", "tc", "c"], ids=["default T", "own T", "own T and C", "own C"])
def test_a_highway_layer_of_any_module_is_its_linen_twin(names):
    def linen_layer():
        return Highway(nn.Dense(5), **{name: nn.Dense(5) for name in names}, transform_bias=-2.0)

    class Twin(nnx.Module):
        def __init__(self, rngs):
            def linear():
                return nnx.Linear(5, 5, rngs=rngs)

            def layer():
                own = {name: linear() for name in names}
                return native.Highway(5, linear(), **own, transform_bias=-2.0, rngs=rngs)

            self.layers_0, self.layers_1 = layer(), layer()
            self.last = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            return self.last(self.layers_1(self.layers_0(x)))

    linen_model = nn.Sequential([linen_layer(), linen_layer(), nn.Dense(3)])
    split = {"x": VECTORS["x"], "y": SPLIT["y"]}
    params = drawn(jax.eval_shape(lambda: linen_model.init(jax.random.key(0), split["x"])))["params"]
    twin = Twin(nnx.Rngs(0))
    variables = {**params, "last": params["layers_2"]}
    variables.pop("layers_2")
    for function in analysis.gate_statistics, analysis.lesion:
        same(function(twin, variables, split), function(linen_model, params, split))
    order = [1, 0]
    same(analysis.drop_layers(twin, variables, split, order), analysis.drop_layers(linen_model, params, split, order))
    started, bias = native.Highway(5, nnx.Linear(5, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)), jnp.full(5, -1.0)
    np.testing.assert_array_equal(started.t.bias[...], bias)
    with pytest.raises(ValueError, match="rngs is None; it must be given for the weights of T"):
        native.Highway(5, nnx.Linear(5, 5, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"h must keep its input's shape \(1, 5\), but returns \(1, 4\)"):
        native.Highway(5, nnx.Linear(5, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))(jnp.ones((1, 5)))


def test_linen_networks_are_analysed_with_all_their_variables_in_evaluation_mode():
    model = Normalized()
    variables = drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), SPLIT["x"], False)))
    assert variables.keys() == {"params", "batch_stats"}
    lesions = analysis.lesion(model, variables, SPLIT, batch_size=10)
    outputs_of = jax.jit(lambda model, variables: model.apply(variables, SPLIT["x"], False), static_argnums=0)
    intact = outputs_of(model, variables)
    np.testing.assert_allclose((lesions.intact_loss, lesions.intact_error), performance(intact), rtol=1e-5)
    for layer in range(3):
        by_hand = jax.tree.map(jnp.array, variables)
        by_hand["params"][f"highway{layer}"]["t"]["bias"] -= 1e9
        for outputs in outputs_of(model, by_hand), outputs_of(Normalized(layer), variables):
            np.testing.assert_allclose((lesions.loss[layer], lesions.error[layer]), performance(outputs), rtol=1e-5)
    closed = analysis.close_gates(model, variables, SPLIT["x"], np.ones(3, bool))
    assert closed.keys() == variables.keys()
    dropped = analysis.drop_layers(model, variables, SPLIT, [2, 0, 1])
    expected = performance(outputs_of(model, closed))
    np.testing.assert_allclose((dropped.loss[-1], dropped.error[-1]), expected, rtol=1e-5)
    # What `init` leaves behind of its one call is no variable.
    also = {**variables, "intermediates": {"highway0": {"transform_gate": (jnp.zeros((1, 6)),)}}}
    same(analysis.gate_statistics(model, also, SPLIT), analysis.gate_statistics(model, variables, SPLIT))


def test_no_linen_module_has_a_part_that_is_called_params():
    """By this key the analysis tells all variables from parameters alone."""

    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            return HighwayDense(name="params")(x)

    model = Named()
    with pytest.raises(flax.errors.ApplyScopeInvalidVariablesStructureError):
        model.apply(model.init(jax.random.key(0), VECTORS["x"]), VECTORS["x"])


class Linen(nn.Module):
    """Highway layers of every kind, named such that the alphabet is not the order of their calls."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="first")(x)
        x = HighwayConv((3, 3), carry="independent", name="z")(x)
        x = HighwayDense("tanh", features=6, name="y")(x.mean(axis=(1, 2)))
        x = HighwayStack(3, "independent", name="x")(x)
        x = Skippable(name="w")(x, nn.Dense(6, name="branch")(x))
        x = HighwayDense(carry="independent", name="layer2")(x)
        x = HighwayDense(name="layer10")(x)
        return nn.Dense(3, name="last")(x)


class Twin(nnx.Module):
    """The same for NNX, with layers that are made in another order than they are called."""

    def __init__(self, rngs):
        self.last = nnx.Linear(6, 3, rngs=rngs)
        self.branch = nnx.Linear(6, 6, rngs=rngs)
        self.layer10 = native.HighwayDense(6, rngs=rngs)
        self.layer2 = native.HighwayDense(6, carry="independent", rngs=rngs)
        self.w = native.Skippable()
        self.x = native.HighwayStack(6, 3, kind="independent", rngs=rngs)
        self.y = native.HighwayDense(4, 6, activation="tanh", rngs=rngs)
        self.z = native.HighwayConv(4, carry="independent", rngs=rngs)
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = self.x(self.y(self.z(self.first(x)).mean(axis=(1, 2))))
        x = self.w(x, self.branch(x))
        return self.last(self.layer10(self.layer2(x)))


def test_an_nnx_network_is_analysed_as_its_linen_twin_and_stays_as_it_is():
    model, twin = Linen(), Twin(nnx.Rngs(0))
    params = drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), SPLIT["x"])))["params"]
    before = frozen(twin)
    wanted = analysis.lesion(model, params, SPLIT, batch_size=10)
    assert len(set(wanted.loss.tolist())) == len(wanted.loss) == 8
    same(analysis.lesion(twin, params, SPLIT, batch_size=10), wanted)
    same(analysis.gate_statistics(twin, params, SPLIT), analysis.gate_statistics(model, params, SPLIT))
    order = wanted.order
    same(analysis.drop_layers(twin, params, SPLIT, order), analysis.drop_layers(model, params, SPLIT, order))
    sample = analysis.inner_states(model, params, SPLIT["x"][3])
    same(analysis.inner_states(twin, params, SPLIT["x"][3]), sample)
    closed = analysis.close_gates(twin, params, SPLIT["x"], np.arange(8) == 5)
    np.testing.assert_allclose(performance(nnx.jit(Twin.__call__)(closed, SPLIT["x"]))[0], wanted.loss[5], rtol=1e-5)
    again = analysis.lesion(closed, None, SPLIT)  # the sum's branch stays closed when others are
    np.testing.assert_allclose((again.intact_loss, again.loss[5]), wanted.loss[5], rtol=1e-5)
    same(again, analysis.lesion(model, analysis.close_gates(model, params, SPLIT["x"], np.arange(8) == 5), SPLIT))
    both = analysis.drop_layers(model, params, SPLIT, [5, 7, 0, 1, 2, 3, 4, 6])
    np.testing.assert_allclose(again.loss[7], both.loss[2], rtol=1e-5)

    assert frozen(twin) == before
    assert twin.w.closed is None
    nnx.update(twin, params)
    for own in None, nnx.state(twin), nnx.to_pure_dict(nnx.state(twin)):
        same(analysis.inner_states(twin, own, SPLIT["x"][3]), sample)


class Eleven(nnx.Module):
    """More layers than sorting by name would keep in order, inside one compiled call."""

    def __init__(self, rngs):
        for layer in range(11):
            setattr(self, f"layer{layer}", native.HighwayDense(5, transform_bias=-layer, rngs=rngs))

    @nnx.jit
    def __call__(self, x):
        for layer in range(11):
            x = getattr(self, f"layer{layer}")(x)
        return x


class Block(nnx.Module):
    def __init__(self, rngs):
        self.highway = native.HighwayDense(5, rngs=rngs)
        self.branch = nnx.Linear(5, 5, rngs=rngs)
        self.skip = native.Skippable()

    def __call__(self, x):
        return self.highway(self.skip(x, self.branch(x)))


class Scanned(nnx.Module):
    """Three blocks as one scan."""

    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(Block))(rngs)

    def __call__(self, x):
        return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)[:, 0]


def test_nnx_layers_are_found_in_the_order_of_the_call_inside_jit_and_scan():
    bias = analysis.gate_statistics(Eleven(nnx.Rngs(0)), None, VECTORS).bias
    np.testing.assert_array_equal(bias, np.repeat(-np.arange(11.0)[:, None], 5, axis=1))

    model = Scanned(nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(model.blocks))
    found = analysis.gate_statistics(model, None, VECTORS)
    assert found.mean.shape == (6, 5)
    assert (found.mean[:3] == 1).all()  # the sums', which come before the highway layers of their blocks
    lesions = analysis.lesion(model, None, VECTORS, loss=squared, batch_size=10)
    for layer in range(6):
        x = VECTORS["x"]
        for index in range(3):
            block = Block(nnx.Rngs(0))
            nnx.update(block, jax.tree.map(lambda leaf: leaf[index], state))  # noqa: B023
            x = x if layer == index else x + block.branch(x)
            x = x if layer == 3 + index else block.highway(x)
        np.testing.assert_allclose(lesions.loss[layer], squared(x[:, 0], VECTORS).mean(), rtol=1e-5)


class Net(nnx.Module):
    """A regression with batch normalization and dropout; in training mode, as it is made."""

    def __init__(self, rngs, width=8):
        self.output = nnx.Linear(width, 1, rngs=rngs)
        self.layers = nnx.List([native.HighwayDense(width, rngs=rngs) for _ in range(3)])
        self.norm = nnx.BatchNorm(width, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.input = nnx.Linear(5, width, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.input(x))
        for layer in self.layers:
            x = self.dropout(layer(x))
        return self.output(x)[:, 0]


def test_what_a_search_finds_goes_straight_into_the_analysis():
    task = population.supervised(
        lambda hp, rngs: Net(rngs), squared, lambda hp: optax.sgd(hp["lr"]), {"mae": lambda o, b: abs(o - b["y"])}
    )
    data = {"train": VECTORS, "evaluate": {"valid": VECTORS}}
    result = population.fit(task, {"lr": 0.01}, **data, num_runs=2, epochs=2, batch_size=10, progress=False)
    best, model = result.best, Net(nnx.Rngs(5))
    before = frozen(model)
    scores = {"loss": squared, "error": lambda outputs, batch: abs(outputs - batch["y"])}
    lesions = analysis.lesion(model, best.variables, VECTORS, **scores)
    reported = [result.curves[f"valid_{name}"][best.run, best.epoch - 1] for name in ("loss", "mae")]
    np.testing.assert_allclose((lesions.intact_loss, lesions.intact_error), reported, rtol=1e-5)
    assert frozen(model) == before  # of which dropout's keys and the mode are a part

    nnx.update(model, best.variables)
    model.eval()
    for layer in range(3):
        bias = model.layers[layer].t.bias[...]
        nnx.update(model.layers[layer].t, {"bias": bias - 1e9})
        outputs = nnx.jit(Net.__call__)(model, VECTORS["x"])
        nnx.update(model.layers[layer].t, {"bias": bias})
        expected = [score(outputs, VECTORS).mean() for score in scores.values()]
        np.testing.assert_allclose((lesions.loss[layer], lesions.error[layer]), expected, rtol=1e-5)
    gates = analysis.gate_statistics(model, best.variables, VECTORS)
    assert gates.class_mean.shape == (0, 3, 8)
    assert gates.class_size.shape == (0,)
    assert gates.open_layers.shape == (37,)
    np.testing.assert_allclose(gates.open_layers.mean(), gates.mean.mean(axis=1).sum(), rtol=1e-5)
    with pytest.raises(ValueError, match="no classes"):
        plots.figure3({"net": gates})


class Gained(nn.Module):
    @nn.compact
    def __call__(self, x, gain):
        for _ in range(3):
            x = HighwayDense("tanh")(x)
        return nn.Dense(1)(x)[:, 0] * gain


def test_scores_and_forward_are_ones_own_whatever_the_batches():
    model, gain = Gained(), RNG.normal(size=37).astype(np.float32)
    split = {**VECTORS, "gain": gain}
    params = drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), VECTORS["x"], gain)))["params"]

    def forward(model, batch, train):
        assert train is False
        return model(batch["x"], batch["gain"])

    whole = analysis.lesion(model, params, split, loss=squared, forward=forward, batch_size=37)
    expected = squared(model.apply({"params": params}, VECTORS["x"], gain), split)
    np.testing.assert_allclose(whole.intact_loss, expected.mean(), rtol=1e-5)
    assert np.isnan([whole.intact_error, *whole.error]).all()
    without = {"x": split["x"], "gain": gain}  # no `y`, which this loss does not use
    for batch_size in 10, 1000:
        same(analysis.lesion(model, params, split, loss=squared, forward=forward, batch_size=batch_size), whole)
        dropped = analysis.drop_layers(
            model, params, without, range(3), loss=lambda outputs, _: outputs, error=lambda outputs, _: outputs > 0,
            forward=forward, batch_size=batch_size,
        )  # fmt: skip
        outputs = model.apply({"params": params}, VECTORS["x"], gain)
        np.testing.assert_allclose((dropped.loss[0], dropped.error[0]), (outputs.mean(), (outputs > 0).mean()), 1e-5)
    closed = analysis.close_gates(model, params, without, np.ones(len(whole.loss), bool), forward=forward)
    expected = squared(model.apply({"params": closed}, VECTORS["x"], gain), split).mean()
    every = analysis.drop_layers(model, params, split, range(3), loss=squared, forward=forward)
    np.testing.assert_allclose(every.loss[-1], expected, rtol=1e-5)
    states = analysis.inner_states(model, params, {"x": split["x"][0], "gain": gain[0]}, forward=forward)
    gates = analysis.gate_statistics(
        model, params, {name: array[:1] for name, array in without.items()}, forward=forward
    )
    np.testing.assert_allclose(states.transform_gate, gates.mean, rtol=1e-5)


class Shared(nnx.Module):
    def __init__(self, rngs):
        self.layer = native.HighwayDense(5, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.layer(x))


class Ungated(nnx.Module):
    """A layer that shows a gate, but has none that could be closed."""

    def __init__(self, rngs):
        self.inner = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, x):
        t = nnx.sigmoid(self.inner(x))
        if hasattr(self, "__captures__"):
            self.sow(nnx.Intermediate, "transform_gate", t)
        return (x * t)[:, 0]


def test_mistakes_are_one_line():
    rngs, labelled = nnx.Rngs(0), {**VECTORS, "y": np.zeros(37, int)}
    stack = linen.HighwayStack(2)
    params = stack.init(jax.random.key(0), VECTORS["x"])["params"]
    net = Net(rngs)
    own = {"loss": squared}
    for call, message in (
        (lambda: analysis.lesion(len, {}, VECTORS), "it must be a Linen or an NNX module"),
        (
            lambda: analysis.lesion(stack, None, VECTORS),
            "variables is None; it must be the variables of the Linen module",
        ),
        (lambda: analysis.lesion(nnx.Linear(5, 3, rngs=rngs), None, labelled), "this Linear has no highway layers"),
        (lambda: analysis.lesion(Shared(rngs), None, labelled), "layer 'layer' is applied more than once"),
        (
            lambda: analysis.inner_states(
                native.HighwayDense(1, rngs=rngs),
                None,
                VECTORS["x"][0],
                forward=lambda m, b, t: m(b["x"].reshape(-1, 1)),
            ),
            r"layer '' has gates of shape \(\d+, 1\) and no axis of the batch's \d+",
        ),
        (lambda: analysis.lesion(Ungated(rngs), None, VECTORS, **own), "layer '' cannot be closed: it has no t/bias"),
        (lambda: analysis.lesion(net, {"outputs": {"bias": 0}}, VECTORS, **own), "variables has 'outputs/bias', which"),
        (
            lambda: analysis.lesion(Net(rngs, 4), nnx.state(net), VECTORS),
            r"of shape \(8,\); this Net's is of shape \(4,\)",
        ),
        (lambda: analysis.lesion(net, None, VECTORS), "split has no labels"),
        (lambda: analysis.lesion(net, None, labelled), r"outputs of shape \(37,\).*must be logits"),
        (lambda: analysis.lesion(net, None, labelled, forward=lambda m, b, t: (m(b["x"]),)), "a tuple, not logits"),
        (
            lambda: analysis.lesion(stack, params, VECTORS, **own, forward=lambda m, b, t: m(b["x"])[:, :1]),
            r"loss is of shape \(37, 37\) for a batch of 37; it must be \(37,\)",
        ),
        (
            lambda: analysis.drop_layers(net, None, VECTORS, range(3), **own, error=lambda o, b: squared(o, b).mean()),
            r"error is of shape \(\) for a batch of 37",
        ),
        (lambda: analysis.lesion(net, None, {"y": VECTORS["y"]}, **own), "split has 'y'; it must have 'x'"),
        (
            lambda: analysis.lesion(net, None, {**VECTORS, "y": 1.0}, **own),
            r"'y' of shape \(\); all must have the same",
        ),
        (lambda: analysis.gate_statistics(net, None, {"x": VECTORS["x"][:0]}), "at least one sample"),
    ):
        with pytest.raises((ValueError, TypeError), match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
