"""The authors' optimizer and learning rates, of hyperparameters that may be traced."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

Scalar = float | jax.Array

# The authors' multipliers (their released Caffe networks).
BIAS_RATE = 2.0
OUTPUT_DECAY = 10.0


def nesterov(
    learning_rate: Scalar | optax.Schedule, momentum: Scalar, weight_decay: Scalar
) -> optax.GradientTransformation:
    """SGD with Nesterov momentum as the authors had it for Tables 1 to 3, in Caffe's order.

    Weights decay by an L2 term in their gradient, ten times as large for the output layer's, biases not at
    all; biases learn at twice the rate. What momentum accumulates is gradients times learning rate: after a
    step of the schedule it still has the old rate.

    Args:
      learning_rate: of the weights, or a schedule that counts steps.
      momentum: momentum.
      weight_decay: factor of the weights in their gradient; the authors have 0.001.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, _weights),
        optax.add_decayed_weights((OUTPUT_DECAY - 1) * weight_decay, _output_weights),
        optax.masked(optax.scale(BIAS_RATE), _biases),
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(momentum, nesterov=True),
    )


def step_decay(
    learning_rate: Scalar, decay: Scalar, boundaries: Sequence[float], steps_per_epoch: int
) -> optax.Schedule:
    """A learning rate that is multiplied by `decay` at each boundary, in epochs (Section 3.3).

    It changes between epochs alone: at the first one, from 0, that is not below a boundary.
    """

    def schedule(count: jax.Array) -> jax.Array:
        epoch = count // steps_per_epoch
        return learning_rate * decay ** jnp.sum(epoch >= jnp.asarray(boundaries, jnp.float32))

    return schedule


def _weights(params):
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _output_weights(params):
    return jax.tree.map_with_path(lambda path, _: [step.key for step in path] == ["output", "kernel"], params)


def _biases(params):
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "bias", params)
