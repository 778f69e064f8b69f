"""One run of a task, as pure functions; nothing here knows of populations or devices.

A `Run` with a leading axis on every leaf is a population.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from highway_jax.population.task import Metrics, Task

PRNG = "threefry2x32"  # of every key; JAX's default may be set to another


@struct.dataclass
class Run:
    """A run's hyperparameters and its whole training state: all that an epoch needs and returns.

    Attributes:
      hp: its traced hyperparameters by name.
      key: what is random in its steps follows from it, the epoch and the step's number: a random key's data, uint32,
        which can be saved like any other array.
      epoch: epochs trained so far, int32.
      state: the task's.
    """

    hp: dict[str, Any]
    key: Any
    epoch: Any
    state: Any


def start(task: Task, hp: dict[str, Any], key: jax.Array, batch: Any) -> Run:
    """Start a run.

    Args:
      task: of traced hyperparameters alone (`Task.with_static`).
      hp: its hyperparameters.
      key: the run's own random key, of the implementation `PRNG`.
      batch: any batch; only shapes and dtypes matter.
    """
    state = jax.tree.map(jnp.asarray, task.init(hp, key, batch))
    return Run(hp, jax.random.key_data(jax.random.fold_in(key, 0)), jnp.int32(0), state)


def train_epoch(task: Task, run: Run, batches: Any) -> tuple[Run, Metrics]:
    """One pass over `batches`, whose leading axis counts steps.

    Returns:
      The run, and the mean of each number that its steps report.
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
    """The mean over all examples of each number that the task reports, by batches, of which the last may be smaller."""
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
    """Of what a batch reports, in float32 at least: sums over thousands of examples are not for 16 bits."""
    values = jnp.asarray(values)
    return jnp.mean(values, dtype=jnp.promote_types(values.dtype, jnp.float32))


def length(tree: Any) -> int:
    """The length of the leading axis of a tree's arrays."""
    return int(np.shape(jax.tree.leaves(tree)[0])[0])
