"""The optimizer, as a function of hyperparameters that may be traced."""

import jax
import optax


def sgd(learning_rate: float | jax.Array, momentum: float | jax.Array) -> optax.GradientTransformation:
    """SGD with momentum; both scalars may be traced. The rate is no part of the optimizer's state."""
    return optax.sgd(learning_rate, momentum)


def exponential_decay(
    learning_rate: float | jax.Array, decay: float | jax.Array, epoch: int | jax.Array
) -> float | jax.Array:
    """The learning rate of an epoch (from 0): `learning_rate * decay**epoch` (Section 3.1)."""
    return learning_rate * decay**epoch
