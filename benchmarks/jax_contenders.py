"""Contenders in JAX: ours, and what a user would write instead.

Each contender takes the work and returns a function, which does all of the work once and waits for its end, and the
number of (run, step) pairs in it. Unless a name says otherwise, products are in float32, as in a search. JAX's default
on recent NVIDIA GPUs would be TF32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.work import CLASSES, INPUTS, LEARNING_RATE, MOMENTUM, PRECISIONS, TRANSFORM_BIAS, Work
from highway_jax import MLP, data, parallel, population
from highway_jax.population.programs import Group, gather_batches
from highway_jax.stack import fused

Contender = tuple[Callable[[], None], int]


def ours(work: Work) -> Contender:
    """An epoch as `population.fit` trains it, with shuffling."""
    return Ours(work, fused.choose(work.width), "float32").epoch, work.runs * work.steps


def ours_xla(work: Work, precision: str = "float32") -> Contender:
    """The same without our own kernels."""
    return Ours(work, "xla", precision).epoch, work.runs * work.steps


# With XLA alone, since our own kernels always multiply in float32.
ours_xla_tf32, ours_xla_tf32x3, ours_xla_bf16 = (
    functools.partial(ours_xla, precision=name) for name in ("tf32", "tf32x3", "bf16")
)


class Ours:
    """A population in training.

    Args:
      work: the work.
      implementation: the implementation of the layers, as in `highway_jax.MLP`.
      precision: the precision of products, one of `PRECISIONS`.

    Attributes:
      runs_per_batch: how many runs a device trains in lockstep.
      free: bytes of a device's memory that the population leaves free; None if the device does not report them.
    """

    def __init__(self, work: Work, implementation: str, precision: str) -> None:
        self.work, self.precision = work, PRECISIONS[precision]
        task = population.supervised(
            model=lambda hp: MLP(
                work.depth,
                work.width,
                activation=hp["activation"],
                transform_bias=hp["transform_bias"],
                implementation=implementation,
            ),
            loss=population.cross_entropy,
            optimizer=lambda hp: optax.sgd(hp["learning_rate"], hp["momentum"]),
            preprocess=lambda batch: {**batch, "x": data.rescale(batch["x"], 255)},
        )
        space = {
            "learning_rate": population.uniform(LEARNING_RATE, LEARNING_RATE),
            "momentum": population.uniform(MOMENTUM, MOMENTUM),
            "activation": population.choice("relu"),
            "transform_bias": population.uniform(TRANSFORM_BIAS, TRANSFORM_BIAS),
        }
        search = population.Search(
            task=task,
            space=population.Space(space),
            train=dict(zip("xy", work.data(), strict=True)),
            num_runs=work.runs,
            epochs=1,
            batch_size=work.batch,
        )
        self.mesh = parallel.runs_mesh()
        with jax.default_matmul_precision(self.precision):
            self.group = Group(search, {}, self.mesh)
            self.train = parallel.replicate(self.mesh, search.train)
            self.members = self.group.start(search.drawn, np.arange(work.runs))
            here = work.runs // self.mesh.shape[parallel.RUNS]
            self.free = parallel.free_memory(self.mesh)
            self.runs_per_batch = work.runs_per_batch or self.group.runs_per_batch(here, self.free)
        self.key = search.epoch_key(0)

    def epoch(self) -> None:
        """Train the population for an epoch."""
        with jax.default_matmul_precision(self.precision):
            self.members, metrics = self.group.train(self.members, self._batches(), self.runs_per_batch)
        assert np.isfinite(np.asarray(metrics["loss"])).all()

    def compiled(self) -> jax.stages.Compiled:
        """The compiled program of an epoch."""
        with jax.default_matmul_precision(self.precision):
            lowered = self.group.programs.train.lower(self.members, self._batches(), self.runs_per_batch, None)
            return lowered.compile()

    def _batches(self) -> Any:
        return gather_batches(self.mesh, self.work.batch, self.train, self.key)


def _init(work: Work, key: jax.Array) -> dict[str, jax.Array]:
    keys = jax.random.split(key, 4)
    he = jax.nn.initializers.he_normal()
    layers, width = work.depth - 1, work.width
    return {
        "input": he(keys[0], (INPUTS, width)),
        "input_bias": jnp.zeros(width),
        "h": jax.vmap(lambda k: he(k, (width, width)))(jax.random.split(keys[1], layers)),
        "h_bias": jnp.zeros((layers, width)),
        "t": jax.vmap(lambda k: he(k, (width, width)))(jax.random.split(keys[2], layers)),
        "t_bias": jnp.full((layers, width), TRANSFORM_BIAS),
        "output": he(keys[3], (width, CLASSES)),
        "output_bias": jnp.zeros(CLASSES),
    }


def _loss(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> jax.Array:
    def layer(x, weights):
        wh, bh, wt, bt = weights
        h, t = jax.nn.relu(x @ wh + bh), jax.nn.sigmoid(x @ wt + bt)
        return h * t + x * (1 - t), None

    x = jax.nn.relu(images @ params["input"] + params["input_bias"])
    x, _ = lax.scan(layer, x, (params["h"], params["h_bias"], params["t"], params["t_bias"]))
    logits = x @ params["output"] + params["output_bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _step(optimizer, state, batch):
    params, opt_state = state
    loss, gradients = jax.value_and_grad(_loss)(params, *batch)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return (optax.apply_updates(params, updates), opt_state), loss


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with all products in float32."""

    @functools.wraps(function)
    def traced(*arguments):
        with jax.default_matmul_precision(PRECISIONS["float32"]):
            return function(*arguments)

    return traced


def _batches(work: Work) -> list[tuple[jax.Array, jax.Array]]:
    images, labels = work.data()
    x = jnp.asarray(images.reshape(work.steps, work.batch, INPUTS), jnp.float32) / 255
    return list(zip(x, jnp.asarray(labels.reshape(work.steps, work.batch)), strict=True))


def jax_loop(work: Work) -> Contender:
    """One run after another with a jitted step: the loop that a search replaces."""
    runs = min(work.runs, 4)
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)
    step = jax.jit(_in_float32(functools.partial(_step, optimizer)), donate_argnums=0)
    batches = _batches(work)
    states = [(p, optimizer.init(p)) for p in (_init(work, jax.random.key(run)) for run in range(runs))]

    def go() -> None:
        for run in range(runs):
            for batch in batches:
                states[run], _ = step(states[run], batch)
        jax.block_until_ready(states)

    return go, runs * work.steps


def jax_vmap(work: Work) -> Contender:
    """`vmap` of the same step over all runs, with plain autodiff."""
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)
    step = jax.jit(_in_float32(jax.vmap(functools.partial(_step, optimizer), in_axes=(0, None))), donate_argnums=0)
    batches = _batches(work)
    params = jax.vmap(functools.partial(_init, work))(jax.random.split(jax.random.key(0), work.runs))
    state = params, jax.vmap(optimizer.init)(params)

    def go() -> None:
        nonlocal state
        for batch in batches:
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    return go, work.runs * work.steps
