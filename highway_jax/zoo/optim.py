"""The authors' optimizer and learning rate schedule, with hyperparameters that may be traced."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

Scalar = float | jax.Array

# The multipliers in the authors' released Caffe networks.
BIAS_RATE = 2.0
OUTPUT_DECAY = 10.0


def nesterov(
    learning_rate: Scalar | optax.Schedule, momentum: Scalar, weight_decay: Scalar
) -> optax.GradientTransformation:
    """SGD with Nesterov momentum as the authors used it for Tables 1 to 3, with Caffe's order of operations.

    The gradient of the weights includes an L2 term, which is ten times as large for the output layer. Biases have no
    such term and learn at twice the rate. Momentum accumulates gradients multiplied by the learning rate, so a change
    of the rate does not affect what has been accumulated.

    Args:
      learning_rate: the learning rate of the weights, or a schedule that counts steps.
      momentum: the momentum.
      weight_decay: the factor of the weights in their gradient; the authors used 0.001.

    Returns:
      The optimizer, for parameters named as in `ConvNet`.
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
    """A learning rate that is multiplied by `decay` at each boundary (Section 3.3).

    Args:
      learning_rate: the initial learning rate.
      decay: the factor.
      boundaries: the epochs, counted from 0, at which it changes; a fraction is rounded up to a whole epoch.
      steps_per_epoch: the number of steps in an epoch.

    Returns:
      The schedule, a function of the number of steps.
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
