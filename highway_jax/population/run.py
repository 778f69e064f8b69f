"""One run of a task, as pure functions that know nothing about populations or devices.

A population is a `Run` whose leaves have an additional leading axis.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from highway_jax.population.task import Metrics, Task

PRNG = "threefry2x32"  # the implementation of every key, whatever JAX's default is


@struct.dataclass
class Run:
    """The hyperparameters and the complete training state of a run.

    Attributes:
      hp: its traced hyperparameters by name.
      key: the data (uint32) of its random key, which can be saved like any other array. The key of a step is derived
        from it, the epoch and the number of the step.
      epoch: the number of epochs trained so far, int32.
      state: the state of the task.
    """

    hp: dict[str, Any]
    key: Any
    epoch: Any
    state: Any


def start(task: Task, hp: dict[str, Any], key: jax.Array, batch: Any) -> Run:
    """Start a run.

    Args:
      task: a task whose hyperparameters are all traced (see `Task.with_static`).
      hp: the hyperparameters of the run.
      key: the random key of the run, of the implementation `PRNG`.
      batch: any batch; only its shapes and dtypes matter.
    """
    state = jax.tree.map(jnp.asarray, task.init(hp, key, batch))
    return Run(hp, jax.random.key_data(jax.random.fold_in(key, 0)), jnp.int32(0), state)


def train_epoch(task: Task, run: Run, batches: Any) -> tuple[Run, Metrics]:
    """Train a run on `batches`, whose leading axis counts steps.

    Returns:
      The run after the epoch, and the mean of each metric over the steps.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(run.key, impl=PRNG), run.epoch)

    def step(state: Any, numbered: tuple[jax.Array, Any]) -> tuple[Any, Metrics]:
        number, batch = numbered
        state, metrics = task.step(run.hp, state, batch, jax.random.fold_in(key, number))
        return state, jax.tree.map(_mean, metrics)

    numbers = jnp.arange(length(batches), dtype=jnp.int32)
    state, metrics = lax.scan(step, run.state, (numbers, batches))
    return dataclasses.replace(run, epoch=run.epoch + 1, state=state), jax.tree.map(jnp.mean, metrics)


def evaluate(task: Task, run: Run, split: Any, batch_size: int) -> Metrics:
    """Return the mean of each metric over all examples of a split, in batches of which the last may be smaller."""
    count = length(split)
    size = min(batch_size, count)
    steps, over = divmod(count, size)

    def sums(batch: Any) -> Metrics:
        return jax.tree.map(lambda m: _mean(m) * length(batch), task.evaluate(run.hp, run.state, batch))

    whole = jax.tree.map(lambda leaf: leaf[: steps * size].reshape(steps, size, *leaf.shape[1:]), split)
    total = jax.tree.map(lambda m: m.sum(axis=0), lax.map(sums, whole))
    if over:
        total = jax.tree.map(jnp.add, total, sums(jax.tree.map(lambda leaf: leaf[steps * size :], split)))
    return jax.tree.map(lambda m: m / count, total)


def _mean(values: Any) -> jax.Array:
    """The mean over a batch, in float32 at least: 16 bits are too few to sum thousands of examples."""
    values = jnp.asarray(values)
    return jnp.mean(values, dtype=jnp.promote_types(values.dtype, jnp.float32))


def length(tree: Any) -> int:
    """The length of the leading axis of a tree's arrays."""
    return int(np.shape(jax.tree.leaves(tree)[0])[0])
