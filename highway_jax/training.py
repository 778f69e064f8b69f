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

from highway_jax import optim
from highway_jax.data import Array, Split


@struct.dataclass
class Hyperparameters:
    """What a random search draws for a run; all scalars, or all of shape (runs,).

    Attributes:
      learning_rate: initial learning rate.
      momentum: momentum.
      decay: factor of the learning rate per epoch.
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
      epoch: epochs trained so far, int32; decides the learning rate.
      params: the network's parameters.
      opt_state: the optimizer's state.
    """

    hyperparameters: Hyperparameters
    epoch: Any
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained, and how, before the hyperparameters are known.

    Attributes:
      network: builds the model from (possibly traced) hyperparameters.
      preprocess: turns stored images (batch, height, width, channels) into the network's input.
    """

    network: Callable[[Hyperparameters], nn.Module]
    preprocess: Callable[[Array], Array] = lambda images: images

    def optimizer(self, hyperparameters: Hyperparameters, epoch: jax.Array) -> optax.GradientTransformation:
        """The optimizer of a run in an epoch."""
        hp = hyperparameters
        return optim.sgd(optim.exponential_decay(hp.learning_rate, hp.decay, epoch), hp.momentum)


def init(recipe: Recipe, hyperparameters: Hyperparameters, key: jax.Array, images: Array) -> Run:
    """Start a run: draw its initial weights.

    Args:
      recipe: the recipe.
      hyperparameters: scalars.
      key: the run's own random key.
      images: any batch of images; only its shape and dtype matter.
    """
    # A batch of one is enough to learn the shapes.
    params = recipe.network(hyperparameters).init(key, recipe.preprocess(images[:1]))["params"]
    epoch = jnp.int32(0)
    return Run(hyperparameters, epoch, params, recipe.optimizer(hyperparameters, epoch).init(params))


def logits(recipe: Recipe, run: Run, images: Array) -> jax.Array:
    """The network's outputs for `images`, (batch, classes)."""
    outputs = recipe.network(run.hyperparameters).apply({"params": run.params}, recipe.preprocess(images))
    assert isinstance(outputs, jax.Array)  # no collection is mutable, so there is nothing else
    return outputs


def train_step(recipe: Recipe, run: Run, batch: Split) -> tuple[Run, jax.Array]:
    """One update on one batch, at the learning rate of the run's epoch.

    Returns:
      The run, and the batch's mean cross entropy (nats) before the update.
    """

    def loss(params):
        outputs = logits(recipe, dataclasses.replace(run, params=params), batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch.labels).mean()

    value, gradients = jax.value_and_grad(loss)(run.params)
    optimizer = recipe.optimizer(run.hyperparameters, run.epoch)
    updates, opt_state = optimizer.update(gradients, run.opt_state, run.params)
    return dataclasses.replace(run, params=optax.apply_updates(run.params, updates), opt_state=opt_state), value


def train_epoch(recipe: Recipe, run: Run, batches: Split) -> tuple[Run, jax.Array]:
    """One pass over `batches`, whose leading axis counts steps (see `highway_jax.data.shuffled_batches`).

    Returns:
      The run, and its mean cross entropy (nats) over the epoch, each batch's taken before its update.
    """
    run, losses = lax.scan(lambda run, batch: train_step(recipe, run, batch), run, batches)
    return dataclasses.replace(run, epoch=run.epoch + 1), losses.mean()


def evaluate(recipe: Recipe, run: Run, split: Split, batch_size: int = 1000) -> dict[str, jax.Array]:
    """Mean cross entropy `loss` (nats) and `accuracy` over a split; both NaN once a run has diverged.

    Examples are taken `batch_size` at a time to bound memory; the last batch may be smaller.
    """

    def one(example: Split) -> tuple[jax.Array, jax.Array]:
        output = logits(recipe, run, example.images[None])[0]
        loss = optax.softmax_cross_entropy_with_integer_labels(output, example.labels)
        correct = (output.argmax() == example.labels).astype(jnp.float32)
        return loss, jnp.where(jnp.isfinite(loss), correct, jnp.nan)

    losses, correct = lax.map(one, split, batch_size=min(batch_size, split.labels.shape[0]))
    return {"loss": losses.mean(), "accuracy": correct.mean()}
