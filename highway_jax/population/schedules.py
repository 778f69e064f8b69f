"""Learning rate schedules that accept traced hyperparameters, which the Optax schedules of the same kind do not."""

import jax
import jax.numpy as jnp
import optax

from highway_jax.population.arguments import checked_integer

Scalar = float | jax.Array


def exponential_decay(
    init_value: Scalar, transition_steps: int, decay_rate: Scalar, staircase: bool = False
) -> optax.Schedule:
    """Exponential decay as in `optax.exponential_decay`, with values that may be traced.

    After `count` steps, the value is `init_value * decay_rate ** (count / transition_steps)`.

    Args:
      init_value: the value at the first step.
      transition_steps: the number of steps after which the value has been multiplied by `decay_rate`.
      decay_rate: the factor.
      staircase: whether the value changes only at multiples of `transition_steps`.

    Returns:
      The schedule, a function of the number of steps.

    Raises:
      ValueError: if `transition_steps` is not an integer of at least 1.

    Example:
      ```python
      optimizer = lambda hp: optax.sgd(population.schedules.exponential_decay(hp["lr"], 1000, hp["decay"]))
      ```
    """
    checked_integer("transition_steps", transition_steps, 1)

    def schedule(count: jax.Array) -> jax.Array:
        return init_value * decay_rate ** (count // transition_steps if staircase else count / transition_steps)

    return schedule


def warmup_cosine(
    init_value: Scalar, peak_value: Scalar, warmup_steps: int, decay_steps: int, end_value: Scalar = 0.0
) -> optax.Schedule:
    """Linear warm-up and cosine decay as in `optax.warmup_cosine_decay_schedule`, with values that may be traced.

    Args:
      init_value: the value at the first step, if there is a warm-up.
      peak_value: the value after the warm-up.
      warmup_steps: the number of steps of the warm-up, from 0.
      decay_steps: the number of steps of the whole schedule, including the warm-up.
      end_value: the value after `decay_steps`.

    Returns:
      The schedule, a function of the number of steps.

    Raises:
      ValueError: if a number of steps is not an integer, or `warmup_steps` is not less than `decay_steps`.
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
