"""One training run, as pure functions of (hyperparameters, key, data).

Nothing here knows of populations or devices: map the functions with `jax.vmap`, `jax.lax.map`, `jax.shard_map`
or `jax.pmap`. A `Run` with a leading axis on every leaf is a population.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.interpreters.partial_eval import dce_jaxpr

from highway_jax import optim
from highway_jax.data import Array, Split

PRNG = "threefry2x32"  # of every key; JAX's default may be set to another


@struct.dataclass
class Hyperparameters:
    """What a random search draws for a run; all scalars, or all of shape (runs,).

    Attributes:
      learning_rate: initial learning rate.
      momentum: momentum.
      decay: factor of the learning rate, per epoch in a search; what it means is the optimizer's.
      activation: index into `highway_jax.activations.ACTIVATIONS`, int32.
      transform_bias: initial bias of the transform gates; plain networks ignore it.
    """

    learning_rate: Any
    momentum: Any
    decay: Any
    activation: Any
    transform_bias: Any


@struct.dataclass
class Run:
    """A run's hyperparameters and its whole training state: all that an epoch needs and returns.

    Attributes:
      hyperparameters: the run's.
      key: what its dropout and augmentation follow from, with the epoch and step: a random key's data,
        uint32, which can be saved like any other array.
      epoch: epochs trained so far, int32; decides the learning rate.
      params: the network's parameters.
      opt_state: the optimizer's state.
    """

    hyperparameters: Hyperparameters
    key: Any
    epoch: Any
    params: Any
    opt_state: Any


def search_optimizer(hyperparameters: Hyperparameters, epoch: jax.Array) -> optax.GradientTransformation:
    """The random search's optimizer: SGD with momentum, the rate decaying exponentially (Section 3.1)."""
    hp = hyperparameters
    return optim.sgd(optim.exponential_decay(hp.learning_rate, hp.decay, epoch), hp.momentum)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained, and how, before the hyperparameters are known.

    Attributes:
      network: builds the model from (possibly traced) hyperparameters. In training it is given a random key
        named `dropout`, in evaluation none.
      preprocess: turns stored images (batch, height, width, channels) into the network's input.
      augment: `augment(key, inputs)` changes a training batch's preprocessed inputs at random.
      optimizer: `optimizer(hyperparameters, epoch)`, the optimizer of an epoch (from 0); its state must not
        depend on the epoch.
      objective: `objective(run, inputs, logits, cross_entropy)`, what a step lowers as a function of the run's
        parameters: a batch's mean cross entropy, by default alone. It must depend on that, as it is what is reported.
    """

    network: Callable[[Hyperparameters], nn.Module]
    preprocess: Callable[[Array], Array] = lambda images: images
    augment: Callable[[jax.Array, Array], Array] = lambda key, inputs: inputs
    optimizer: Callable[[Hyperparameters, Any], optax.GradientTransformation] = search_optimizer
    objective: Callable[[Run, Array, jax.Array, jax.Array], jax.Array] = lambda run, inputs, logits, loss: loss


def init(recipe: Recipe, hyperparameters: Hyperparameters, key: jax.Array, images: Array) -> Run:
    """Start a run: draw its initial weights.

    Args:
      recipe: the recipe.
      hyperparameters: scalars.
      key: the run's own random key, of the implementation `PRNG`.
      images: any batch of images; only its shape and dtype matter.

    Raises:
      ValueError: for a network or an objective that is not a classifier's.
    """
    inputs = recipe.preprocess(images[:1])  # one is enough to learn the shapes
    params = recipe.network(hyperparameters).init(key, inputs)["params"]
    epoch = jnp.int32(0)
    opt_state = recipe.optimizer(hyperparameters, epoch).init(params)
    run = Run(hyperparameters, jax.random.key_data(jax.random.fold_in(key, 0)), epoch, params, opt_state)
    # It raises before anything is trained.
    jax.eval_shape(lambda: _losses(recipe, run, inputs, jnp.zeros(1, jnp.int32), dropout=key))
    return run


def logits(recipe: Recipe, run: Run, images: Array) -> jax.Array:
    """The network's outputs for `images`, (batch, classes), without dropout or augmentation."""
    return _apply(recipe, run, recipe.preprocess(images))


def cross_entropy(logits: jax.Array, labels: Array) -> jax.Array:
    """Each example's cross entropy (nats), (batch,), in float32 at least.

    Args:
      logits: (batch, classes), two classes or more.
      labels: (batch,) integers below the number of classes.

    Raises:
      ValueError: for logits of another shape.
    """
    if logits.shape[:-1] != labels.shape or logits.ndim != 2 or logits.shape[-1] < 2:
        raise ValueError(
            f"the network gives outputs of shape {logits.shape} for {labels.shape[0]} examples; they must be logits of "
            f"shape (batch, classes), with at least 2 classes, whose cross entropy is reported"
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _apply(recipe: Recipe, run: Run, inputs: Array, **rngs: jax.Array) -> jax.Array:
    outputs = recipe.network(run.hyperparameters).apply({"params": run.params}, inputs, rngs=rngs)
    assert isinstance(outputs, jax.Array)  # no collection is mutable, so there is nothing else
    return outputs


def _losses(recipe: Recipe, run: Run, inputs: Array, labels: Array, **rngs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a step lowers, and the mean cross entropy, which is what is reported."""
    outputs = _apply(recipe, run, inputs, **rngs)
    loss = cross_entropy(outputs, labels).mean()

    def objective(loss: jax.Array) -> jax.Array:
        return recipe.objective(run, inputs, outputs, loss)

    traced = jax.make_jaxpr(objective)(loss).jaxpr
    _, (depends,) = dce_jaxpr(traced, [True] * len(traced.outvars))
    if not depends:
        raise ValueError(
            "objective does not depend on the cross_entropy that it is given, which is reported and ranked all the "
            "same; it must lower that, alone or with more"
        )
    return objective(loss), loss


def train_step(recipe: Recipe, run: Run, batch: Split, key: jax.Array) -> tuple[Run, jax.Array]:
    """One update on one batch, at the learning rate of the run's epoch.

    Args:
      recipe, run, batch: what is trained, and on what.
      key: the step's own random key, for augmentation and dropout.

    Returns:
      The run, and the batch's mean cross entropy (nats) before the update.

    Raises:
      ValueError: as `init`.
    """
    augmentation, dropout = jax.random.split(key)
    inputs = recipe.augment(augmentation, recipe.preprocess(batch.images))

    def objective(params):
        now = dataclasses.replace(run, params=params)
        return _losses(recipe, now, inputs, batch.labels, dropout=dropout)

    (_, loss), gradients = jax.value_and_grad(objective, has_aux=True)(run.params)
    optimizer = recipe.optimizer(run.hyperparameters, run.epoch)
    updates, opt_state = optimizer.update(gradients, run.opt_state, run.params)
    return dataclasses.replace(run, params=optax.apply_updates(run.params, updates), opt_state=opt_state), loss


def train_epoch(recipe: Recipe, run: Run, batches: Split) -> tuple[Run, jax.Array]:
    """One pass over `batches`, whose leading axis counts steps (see `highway_jax.data.shuffled_batches`).

    Returns:
      The run, and its mean cross entropy (nats) over the epoch, each batch's taken before its update.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(run.key, impl=PRNG), run.epoch)

    def step(run: Run, numbered: tuple[jax.Array, Split]) -> tuple[Run, jax.Array]:
        number, batch = numbered
        return train_step(recipe, run, batch, jax.random.fold_in(key, number))

    run, losses = lax.scan(step, run, (jnp.arange(len(batches.labels), dtype=jnp.int32), batches))
    return dataclasses.replace(run, epoch=run.epoch + 1), losses.mean()


def evaluate(recipe: Recipe, run: Run, split: Split, batch_size: int = 1000) -> dict[str, jax.Array]:
    """Mean cross entropy `loss` (nats) and `accuracy` over a split; both NaN once a run has diverged.

    Examples are taken `batch_size` at a time to bound memory; the last batch may be smaller.

    Raises:
      ValueError: for a network that is not a classifier.
    """

    def one(example: Split) -> tuple[jax.Array, jax.Array]:
        output = logits(recipe, run, example.images[None])
        loss = cross_entropy(output, example.labels[None])[0]
        correct = (output[0].argmax() == example.labels).astype(jnp.float32)
        return loss, jnp.where(jnp.isfinite(loss), correct, jnp.nan)

    losses, correct = lax.map(one, split, batch_size=min(batch_size, split.labels.shape[0]))
    return {"loss": losses.mean(), "accuracy": correct.mean()}
