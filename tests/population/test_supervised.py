"""Flax models as tasks: Linen and NNX, with batch statistics, dropout and further collections."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import highway_jax.nnx
from highway_jax import Dropout, population
from highway_jax.functional.activations import activate
from highway_jax.population import choice, grid, log_uniform, schedules, uniform

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 5)).astype(np.float32)
Y = (X[:, 0] - np.sin(X[:, 1])).astype(np.float32)
DATA = {"train": {"x": X[:50], "y": Y[:50]}, "evaluate": {"valid": {"x": X[50:], "y": Y[50:]}}}
SEARCH = {**DATA, "num_runs": 3, "epochs": 2, "batch_size": 10, "progress": False}


def squared(outputs, batch):
    return (outputs - batch["y"]) ** 2


class Net(nn.Module):
    """Batch normalization, dropout, noise from a stream of its own, and a count of its calls."""

    width: int = 8
    dropout: float | jax.Array = 0.0
    activation: object = "relu"

    @nn.compact
    def __call__(self, x, train):
        x = activate(nn.Dense(self.width)(x), self.activation)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = Dropout(self.dropout, deterministic=not train)(x)
        calls = self.variable("counter", "calls", lambda: jnp.int32(0))
        if train:
            calls.value += 1
            x += 0.01 * jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(1)(x)[:, 0]


class NNXNet(nnx.Module):
    def __init__(self, dropout, activation, rngs):
        self.hidden = nnx.Linear(5, 8, rngs=rngs)
        self.activation = activation
        self.layers = nnx.List([highway_jax.nnx.HighwayDense(8, activation=activation, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = highway_jax.nnx.Dropout(dropout, rngs=rngs)
        self.output = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        x = activate(self.hidden(x), self.activation)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.dropout(self.norm(x)))[:, 0]


SPACE = {"lr": log_uniform(1e-3, 1e-1), "dropout": uniform(0, 0.5), "activation": choice("relu", "tanh")}


def order_of(seed, epoch, size=10):
    key = jax.random.fold_in(jax.random.split(jax.random.key(seed, impl="threefry2x32"))[1], epoch)
    return jax.random.permutation(key, len(DATA["train"]["x"])).reshape(-1, size)


def key_of(seed, run):
    return jax.random.split(jax.random.fold_in(jax.random.split(jax.random.key(seed, impl="threefry2x32"))[0], run))[1]


@pytest.mark.filterwarnings("ignore:space has .activation., .width., which")
def test_the_contract_runs_as_written(tmp_path):
    from highway_jax.population import choice, log_uniform, uniform

    class Net(nn.Module):
        dropout: float = 0.0

        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(1)(Dropout(self.dropout, deterministic=not train)(x))[:, 0]

    V, T = ({"x": X[50:], "y": Y[50:]},) * 2
    task = population.supervised(
        model=lambda hp: Net(dropout=hp["dropout"]),
        loss=lambda outputs, batch: (outputs - batch["y"]) ** 2,
        optimizer=lambda hp: optax.adamw(hp["lr"], weight_decay=hp["wd"]),
        metrics={"mae": lambda outputs, batch: abs(outputs - batch["y"])},
    )
    space = {
        "lr": log_uniform(1e-4, 1e-1), "wd": log_uniform(1e-5, 1.0), "dropout": uniform(0.0, 0.5),
        "activation": choice("relu", "tanh"), "width": choice(32, 64, static=True),
    }  # fmt: skip
    result = population.fit(
        task, space, train={"x": X, "y": Y}, evaluate={"valid": V, "test": T},
        num_runs=20, seeds=1, seed=0, epochs=3, batch_size=10,
        rank_by="valid_loss",
        policy=population.Halving(every=2),
        workdir=tmp_path / "mine",
        progress=True,
    )  # fmt: skip
    table = result.table()
    assert len(table) == 20
    assert result.curves["valid_loss"].shape == (20, 3)
    best = result.best
    outputs = Net().apply(best.variables, V["x"], train=False)
    assert best.variables["params"] is best.params is best.state.params
    np.testing.assert_allclose(squared(outputs, V).mean(), table.set_index("rank").loc[1, "best_valid_loss"], rtol=1e-5)
    assert table.set_index("run").loc[best.run, "rank"] == 1
    assert [axes.get_ylabel() for axes in result.plot().axes] == ["valid loss", ""]
    longer = population.replay(result, run=17, epochs=5)
    assert longer.curves["valid_loss"].shape == (1, 5)
    np.testing.assert_array_equal(longer.curves["train_loss"][0, :2], result.curves["train_loss"][17, :2])


def mean_loss(params, model, rest, rows, streams):
    variables = {"params": params, **rest}
    outputs, updated = model.apply(variables, jnp.asarray(X)[rows], train=True, mutable=list(rest), rngs=streams)
    return squared(outputs, {"y": jnp.asarray(Y)[rows]}).mean(), updated


@pytest.mark.filterwarnings("ignore:space has .dropout., which")
def test_linen_trains_as_a_loop_written_by_hand():
    task = population.supervised(
        lambda hp: Net(activation=hp["activation"]), squared, lambda hp: optax.adamw(hp["lr"]),
        {"mae": lambda outputs, batch: abs(outputs - batch["y"])},
    )  # fmt: skip
    result = population.fit(task, SPACE, **SEARCH, keep="all")
    for run in 0, 2:
        hp = {name: values[run] for name, values in result.hyperparameters.items()}
        model, optimizer = Net(activation=hp["activation"]), optax.adamw(hp["lr"])
        variables = jax.jit(functools.partial(model.init, train=False))(key_of(0, run), X[:1])
        gradients_of = jax.jit(jax.grad(mean_loss, has_aux=True), static_argnums=1)
        params, rest = variables["params"], {name: variables[name] for name in ("batch_stats", "counter")}
        opt_state = optimizer.init(params)
        for epoch in range(2):
            for number, rows in enumerate(order_of(0, epoch)):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key_of(0, run), 0), epoch), number)
                streams = {"noise": jax.random.fold_in(jax.random.split(key)[1], 0), "dropout": key}

                gradients, rest = gradients_of(params, model, rest, rows, streams)
                updates, opt_state = optimizer.update(gradients, opt_state, params)
                params = optax.apply_updates(params, updates)
        found = result.run(run).variables
        assert found["counter"]["calls"] == 10
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), found, {"params": params, **rest}
        )
        outputs = model.apply(found, X[50:], train=False)
        np.testing.assert_allclose(abs(outputs - Y[50:]).mean(), result.curves["valid_mae"][run, -1], rtol=1e-5)


def test_nnx_trains_as_a_loop_written_by_hand():
    """Two members, dropout and batch statistics included."""
    task = population.supervised(
        lambda hp, rngs: NNXNet(hp["dropout"], hp["activation"], rngs), squared,
        lambda hp: optax.adamw(schedules.warmup_cosine(0.0, hp["lr"], 3, 10)),
    )  # fmt: skip
    result = population.fit(task, SPACE, **SEARCH, keep="all")
    for run in 0, 1:
        hp = {name: values[run] for name, values in result.hyperparameters.items()}
        model = NNXNet(float(hp["dropout"]), hp["activation"], nnx.Rngs(key_of(0, run)))
        optimizer = nnx.Optimizer(
            model, optax.adamw(optax.warmup_cosine_decay_schedule(0.0, float(hp["lr"]), 3, 10)), wrt=nnx.Param
        )

        @nnx.jit
        def update(model, optimizer, batch):
            gradients = nnx.grad(lambda model: squared(model(batch["x"]), batch).mean())(model)
            optimizer.update(model, gradients)

        for epoch in range(2):
            for rows in order_of(0, epoch):
                update(model, optimizer, {"x": X[rows], "y": Y[rows]})
        model.eval()
        expected = squared(model(X[50:]), {"y": Y[50:]}).mean()
        np.testing.assert_allclose(result.curves["valid_loss"][run, -1], expected, rtol=1e-4)
        plain = NNXNet(float(hp["dropout"]), hp["activation"], nnx.Rngs(5))
        nnx.update(plain, result.run(run).variables)
        plain.eval()
        np.testing.assert_allclose(plain(X[50:]), model(X[50:]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rate", [1.5, -0.5, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match=r"rate is .*; it must be from 0 to 1"):
        Dropout(rate, deterministic=False).apply({}, X, rngs={"dropout": jax.random.key(0)})
    with pytest.raises(ValueError, match=r"rate is .*; it must be from 0 to 1"):
        highway_jax.nnx.Dropout(rate, rngs=nnx.Rngs(0))(jnp.asarray(X))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_dropout_of_a_traced_rate_is_flaxs(rate):
    x, key = jnp.asarray(X), jax.random.key(1)
    expected = nn.Dropout(rate, deterministic=False).apply({}, x, rngs={"dropout": key})
    ours = jax.jit(lambda rate: Dropout(rate, deterministic=False).apply({}, x, rngs={"dropout": key}))
    np.testing.assert_allclose(ours(rate), expected, rtol=1e-6)
    theirs, mine = nnx.Dropout(rate, rngs=nnx.Rngs(dropout=2)), highway_jax.nnx.Dropout(rate, rngs=nnx.Rngs(dropout=2))
    np.testing.assert_allclose(mine(x), theirs(x), rtol=1e-6)
    assert np.isfinite(
        jax.grad(lambda x: Dropout(jnp.float32(rate), False).apply({}, x, rngs={"dropout": key}).sum())(x)
    ).all()
    np.testing.assert_array_equal(Dropout(rate).apply({}, x, deterministic=True), x)


@pytest.mark.parametrize("warmup", [0, 3])
def test_warmup_cosine_is_optaxs(warmup):
    counts = np.arange(15)
    expected = (
        optax.warmup_cosine_decay_schedule(0.1, 2.0, warmup, 10, 0.5)
        if warmup
        else optax.cosine_decay_schedule(2.0, 10, 0.25)
    )
    found = jax.jit(lambda peak: jax.vmap(schedules.warmup_cosine(0.1, peak, warmup, 10, 0.5))(counts))(2.0)
    np.testing.assert_allclose(found, expected(counts), rtol=1e-5)
    with pytest.raises(ValueError, match="warmup_steps is 10; it must be less than decay_steps, 10"):
        schedules.warmup_cosine(0.1, 2.0, 10, 10)
    with pytest.raises(ValueError, match=r"warmup_steps is 2\.5; it must be an integer"):
        schedules.warmup_cosine(0.1, 2.0, 2.5, 10)


@pytest.mark.parametrize("staircase", [True, False])
def test_exponential_decay_is_optaxs(staircase):
    counts = np.arange(15)
    expected = optax.exponential_decay(2.0, 4, 0.7, staircase=staircase)(counts)
    found = jax.jit(lambda rate: jax.vmap(schedules.exponential_decay(2.0, 4, rate, staircase))(counts))(0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="transition_steps is 0; it must be an integer of at least 1"):
        schedules.exponential_decay(2.0, 0, 0.7)


def test_losses_and_the_like_are_given_hyperparameters_if_they_take_them():
    task = population.supervised(
        lambda hp: nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros),
        lambda outputs, batch, hp: hp["a"] + batch["x"][:, 0], lambda hp: optax.sgd(0.0),
        {"twice": lambda outputs, batch, *, hp: 2 * hp["a"], "none": lambda outputs, batch: batch["x"][:, 0]},
        preprocess=lambda batch, hp: {"x": hp["a"] + 0 * batch["x"]},
        augment=lambda key, batch, hp: {"x": hp["a"] + batch["x"]},
    )  # fmt: skip
    result = population.fit(task, {"a": np.array([1.0, 2.0, 5.0])}, **SEARCH)
    for name, factor in {"train_loss": 3, "valid_loss": 2, "train_twice": 2, "train_none": 2, "valid_none": 1}.items():
        np.testing.assert_array_equal(result.curves[name], factor * np.array([[1.0] * 2, [2.0] * 2, [5.0] * 2]))


def test_a_function_that_is_compiled_by_itself_may_take_hyperparameters_too():
    def loss(outputs, batch, hp):
        return hp["a"] * (2 if hp["kind"] == "double" else 1) + 0 * outputs

    space = {"a": np.array([1.0, 2.0, 5.0]), "kind": "double"}
    curves = [
        population.fit(
            population.supervised(lambda hp: Static(), wrapped, lambda hp: optax.sgd(0.0)), space, **SEARCH
        ).curves["train_loss"]
        for wrapped in (loss, jax.jit(loss), jax.checkpoint(loss, static_argnums=()))
    ]
    np.testing.assert_array_equal(curves[0][:, 0], [2, 4, 10])
    np.testing.assert_array_equal(curves[0], curves[1])
    np.testing.assert_array_equal(curves[0], curves[2])


def test_batches_are_preprocessed_and_augmented_and_the_forward_pass_is_ones_own():
    def augment(key, batch):
        return {**batch, "x": batch["x"] + jax.random.bernoulli(key)}

    def forward(model, batch, train):
        return {"y": model(batch["x"]) + (100.0 if train else 0.0)}

    task = population.supervised(
        lambda hp: nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros), lambda out, batch: out["y"][:, 0],
        lambda hp: optax.sgd(0.0), {"shift": lambda out, batch: batch["x"].min()},
        forward=forward, preprocess=lambda batch: {"x": batch["x"] * 0.0}, augment=augment,
    )  # fmt: skip
    result = population.fit(task, {}, **{**SEARCH, "num_runs": 8})
    np.testing.assert_array_equal(result.curves["train_loss"], 100)
    np.testing.assert_array_equal(result.curves["valid_loss"], 0)
    shifts = result.curves["train_shift"]
    assert ((shifts.mean() > 0) & (shifts.mean() < 1)).all()
    assert len(np.unique(shifts, axis=0)) > 1  # each run's own
    np.testing.assert_array_equal(result.curves["valid_shift"], 0)


class Late(nn.Module):
    """Has a collection in training alone, or one that grows."""

    grows: bool = False

    @nn.compact
    def __call__(self, x, train):
        if train and not self.grows:
            self.variable("late", "seen", lambda: jnp.zeros(()))
        if self.grows:
            self.sow("losses", "penalty", x.sum())
        return nn.Dense(1)(x)[:, 0]


class Static(nn.Module):
    width: int = 4
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(1)(nn.Dropout(self.rate, deterministic=not train)(nn.Dense(self.width)(x)))[:, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": lambda outputs, batch: outputs[:, None] - batch["y"]}, r"loss is of shape \(10, 10\) for a batch"),
        ({"metrics": {"m": lambda outputs, batch: outputs[:3]}}, r"m is of shape \(3,\)"),
        ({"metrics": {"loss": squared}}, "metrics has 'loss'"),
        ({"model": lambda hp: 3}, r"model\(hp\) returns 3; it must return a Linen module"),
        ({"model": lambda: Static()}, r"model takes \(\); it must be a function of \(hp\) .* or of \(hp, rngs\)"),
        ({"model": lambda rngs, hp: Static()}, r"model takes \(rngs, hp\); it must be a function of \(hp\)"),
        ({"model": Static()}, "model is an object of type Static; it must be a function"),
        ({"model": nnx.Linear(5, 1, rngs=nnx.Rngs(0))}, "model is an object of type Linear; it must be a function"),
        ({"model": lambda hp, rngs: Static()}, r"model\(hp, rngs\) returns an object of type Static"),
        ({"optimizer": optax.sgd(0.1)}, r"optimizer is an object of type Gr\w+; it must be a function of \(hp\)"),
        ({"optimizer": lambda hp: 0.1}, r"optimizer\(hp\) returns 0.1; it must return an Optax optimizer"),
        ({"loss": "mse"}, r"loss is 'mse'; it must be a function of \(outputs, batch\)"),
        ({"loss": lambda batch, outputs: 0}, r"loss takes \(batch, outputs\); it must be a function of \(outputs,"),
        ({"loss": lambda outputs, y, mask: y}, r"loss takes \(outputs, y, mask\); it must be a function of"),
        ({"metrics": [squared]}, "metrics is an object of type list; it must be a mapping from names to functions"),
        ({"metrics": {"m": 1}}, r"metrics\['m'\] is 1; it must be a function of \(outputs, batch\)"),
        ({"forward": lambda m: m}, r"forward takes \(m\); it must be a function of \(model, batch, train\)"),
        ({"augment": lambda batch: batch}, r"augment takes \(batch\); it must be a function of \(key, batch\)"),
        ({"model": lambda hp: Late()}, "collection 'late' in training that it did not have"),
        ({"model": lambda hp: Late(grows=True)}, r"a step changes the state's .*losses"),
        ({"model": lambda hp: Static(rate=hp["dropout"])}, "'dropout' is traced, but the task needs its value"),
        ({"model": lambda hp: Static(width=hp["width"])}, "'width' is traced.*static=True"),
        ({"optimizer": lambda hp: optax.sgd(optax.warmup_cosine_decay_schedule(0, hp["lr"], 1, 9))}, "'lr' is traced"),
        ({"model": lambda hp: Static(width=hp["oops"])}, "no hyperparameter 'oops'; the space has"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_is_trained(change, message):
    parts = {"model": lambda hp: Static(), "loss": squared, "optimizer": lambda hp: optax.sgd(hp["lr"])}
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        population.fit(population.supervised(**(parts | change)), {**SPACE, "width": choice(4, 8)}, **SEARCH)


def test_a_loss_that_fails_is_told_what_it_was_given():
    task = population.supervised(lambda hp: Static(), lambda outputs, y: outputs - y, lambda hp: optax.sgd(0.1))
    with pytest.raises(TypeError, match="unsupported operand") as caught:
        population.fit(task, {}, **SEARCH)
    batch = {"x": "float32[10,5]", "y": "float32[10]"}
    told = f"The error is in loss(outputs, batch), where outputs are float32[10] and a batch is {batch}."
    assert told in caught.value.__notes__


def test_labels_that_are_no_classes_have_no_cross_entropy():
    logits = jnp.asarray([[0.0, 0.0, 9.0]] * 4)
    found = population.cross_entropy(logits, {"y": jnp.array([2, 0, -1, 3])})
    np.testing.assert_allclose(found, [np.log1p(2 * np.exp(-9)), 9.000247, np.nan, np.nan], rtol=1e-3)
    for labels in jnp.ones(4), jnp.ones((4, 3), int), jnp.ones((4, 1), int):
        with pytest.raises(ValueError, match=r"batch\['y'\] is .*; labels must be \(batch,\) integers"):
            population.cross_entropy(logits, {"y": labels})


BRANCHES = {
    "compares": lambda x, activation: jnp.tanh(x) if activation == "tanh" else nn.relu(x),
    "looks among": lambda x, activation: jnp.tanh(x) if activation in ("tanh", "sigmoid") else nn.relu(x),
    "looks up": lambda x, activation: {"tanh": jnp.tanh, "relu": nn.relu}[activation](x),
    "gets an attribute": lambda x, activation: getattr(nn, activation)(x),
    "asks for the index": lambda x, activation: jnp.tanh(x) if activation == 1 else nn.relu(x),
}


class Activated(nn.Module):
    function: object
    activation: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(self.function(nn.Dense(4)(x), self.activation))[:, 0]


class NNXActivated(nnx.Module):
    def __init__(self, function, activation, rngs):
        self.hidden, self.output = nnx.Linear(5, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
        self.function, self.activation = function, activation

    def __call__(self, x):
        return self.output(self.function(self.hidden(x), self.activation))[:, 0]


def activated(library, function):
    model = {
        "linen": lambda hp: Activated(function, hp["activation"]),
        "nnx": lambda hp, rngs: NNXActivated(function, hp["activation"], rngs),
    }[library]
    return population.supervised(model, squared, lambda hp: optax.sgd(0.1))


@pytest.mark.parametrize("function", BRANCHES.values(), ids=BRANCHES)
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_branch_of_python_on_a_traced_activation_is_refused(library, function):
    with pytest.raises(TypeError, match=r"'activation' is traced, .*static=True\), or .*: hp\['activation'\]\(x\)"):
        population.fit(activated(library, function), {"activation": choice("relu", "tanh")}, **SEARCH)


def test_a_class_that_takes_hp_is_a_model():
    class Linen(nn.Module):
        hp: dict

        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(x)[:, 0] * self.hp["scale"]

    class NNX(nnx.Module):
        def __init__(self, hp, rngs):
            self.output, self.scale = nnx.Linear(5, 1, rngs=rngs), nnx.data(hp["scale"])

        def __call__(self, x):
            return self.output(x)[:, 0] * self.scale

    for model in Linen, NNX:
        task = population.supervised(model, squared, lambda hp: optax.sgd(0.1))
        assert population.fit(task, {"scale": uniform(0.5, 1)}, **{**SEARCH, "epochs": 1}).best.epoch == 1


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_traced_activation_is_a_function(library):
    search = {**SEARCH, "num_runs": 4, "epochs": 1}
    traced = population.fit(
        activated(library, lambda x, activation: activation(x)), {"activation": grid("relu", "tanh")}, **search
    )
    static = population.fit(
        activated(library, lambda x, activation: getattr(nn, activation)(x)),
        {"activation": grid("relu", "tanh", static=True)}, **search,
    )  # fmt: skip
    np.testing.assert_allclose(traced.curves["valid_loss"], static.curves["valid_loss"], rtol=1e-5)


@pytest.mark.parametrize("data", [(X, Y), X, {"inputs": X, "y": Y}], ids=["tuple", "array", "names"])
def test_a_batch_without_inputs_named_x_is_told(data):
    task = population.supervised(lambda hp: Static(), squared, lambda hp: optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"a batch is .*, without the 'x' that the model is called with"):
        population.fit(task, {}, **{**SEARCH, "train": data, "evaluate": {}})


def test_an_optimizer_of_hyperparameters_in_a_train_state_is_told():
    def init(hp, key, batch):
        return train_state.TrainState.create(apply_fn=None, params={"w": jnp.zeros(5)}, tx=optax.sgd(hp["lr"]))

    def step(hp, state, batch, key):
        return state.apply_gradients(grads={"w": batch["x"].sum(0)}), {"loss": 0.0}

    with pytest.raises(jax.errors.TracerArrayConversionError) as caught:
        population.fit(population.Task(init, step, lambda hp, state, batch: {"loss": 0.0}), SPACE, **SEARCH)
    assert "such as a TrainState's tx. Make the optimizer once" in caught.value.__notes__[-1]
