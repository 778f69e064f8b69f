"""Optimizers and learning rates, as functions of hyperparameters that may be traced.

The learning rate is a scalar that the caller works out for the epoch; it is no part of an optimizer's state.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

Scalar = float | jax.Array

# The authors' multipliers (their released Caffe networks).
BIAS_RATE = 2.0
OUTPUT_DECAY = 10.0


def sgd(learning_rate: Scalar, momentum: Scalar) -> optax.GradientTransformation:
    """SGD with momentum (Section 3.1)."""
    return optax.sgd(learning_rate, momentum)


def nesterov(learning_rate: Scalar, momentum: Scalar, weight_decay: Scalar) -> optax.GradientTransformation:
    """SGD with Nesterov momentum as the authors had it for Tables 1 to 3, in Caffe's order.

    Weights decay by an L2 term in their gradient, ten times as large for the output layer's, biases not at
    all; biases learn at twice the rate. What momentum accumulates is gradients times learning rate: after a
    step of the schedule it still has the old rate.

    Args:
      learning_rate: of the weights.
      momentum: momentum.
      weight_decay: factor of the weights in their gradient; the authors have 0.001.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, _weights),
        optax.add_decayed_weights((OUTPUT_DECAY - 1) * weight_decay, _output_weights),
        optax.masked(optax.scale(BIAS_RATE), _biases),
        optax.scale(-learning_rate),
        optax.trace(momentum, nesterov=True),
    )


def exponential_decay(learning_rate: Scalar, decay: Scalar, epoch: int | jax.Array) -> Scalar:
    """The learning rate of an epoch (from 0): `learning_rate * decay**epoch` (Section 3.1)."""
    return learning_rate * decay**epoch


def step_decay(learning_rate: Scalar, decay: Scalar, epoch: int | jax.Array, boundaries: Sequence[float]) -> Scalar:
    """The learning rate of an epoch (from 0), multiplied by `decay` at each boundary, in epochs (Section 3.3)."""
    return learning_rate * decay ** jnp.sum(epoch >= jnp.asarray(boundaries, jnp.float32))


def _weights(params):
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _output_weights(params):
    return jax.tree.map_with_path(lambda path, _: [step.key for step in path] == ["output", "kernel"], params)


def _biases(params):
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "bias", params)
