"""Learning rate schedules whose values may be traced hyperparameters, where Optax's may not."""

import jax
import jax.numpy as jnp
import optax

from highway_jax.population.arguments import checked_integer

Scalar = float | jax.Array


def exponential_decay(
    init_value: Scalar, transition_steps: int, decay_rate: Scalar, staircase: bool = False
) -> optax.Schedule:
    """`init_value * decay_rate ** (count / transition_steps)`: `optax.exponential_decay`, of traced values.

    Args:
      init_value: at the first step.
      transition_steps: after so many steps it is multiplied by `decay_rate`.
      decay_rate: the factor.
      staircase: whether it changes at those steps alone.

    Raises:
      ValueError: if `transition_steps` is no integer of at least 1.
    """
    checked_integer("transition_steps", transition_steps, 1)

    def schedule(count: jax.Array) -> jax.Array:
        return init_value * decay_rate ** (count // transition_steps if staircase else count / transition_steps)

    return schedule


def warmup_cosine(
    init_value: Scalar, peak_value: Scalar, warmup_steps: int, decay_steps: int, end_value: Scalar = 0.0
) -> optax.Schedule:
    """Linear warm-up, then a cosine down: `optax.warmup_cosine_decay_schedule`, of traced values.

    Args:
      init_value: at the first step.
      peak_value: after the warm-up.
      warmup_steps: its length.
      decay_steps: the length of all, warm-up included.
      end_value: from then on.

    Raises:
      ValueError: for lengths that are no integers, or a warm-up that is as long as all.
    """
    checked_integer("warmup_steps", warmup_steps, 0)
    if checked_integer("decay_steps", decay_steps, 1) <= warmup_steps:
        raise ValueError(f"warmup_steps is {warmup_steps}; it must be less than decay_steps, {decay_steps}")

    def schedule(count: jax.Array) -> jax.Array:
        warm = init_value + (peak_value - init_value) * count / max(warmup_steps, 1)
        share = jnp.clip((count - warmup_steps) / (decay_steps - warmup_steps), 0, 1)
        cosine = end_value + (peak_value - end_value) * 0.5 * (1 + jnp.cos(jnp.pi * share))
        return jnp.where(count < warmup_steps, warm, cosine)

    return schedule
