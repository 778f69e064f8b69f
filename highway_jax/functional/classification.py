"""The loss and the accuracy of classifiers, as functions of outputs and batch for `population.supervised`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, batch: Any) -> jax.Array:
    """The cross entropy of each example, in nats.

    Args:
      logits: (batch, classes), with at least two classes.
      batch: has the labels `batch["y"]`, (batch,) integers from 0 to classes - 1. Any other label, such as -1, has a
        cross entropy of NaN.

    Returns:
      The cross entropy, (batch,), in float32 at least.

    Raises:
      ValueError: if the logits have another shape, or the labels are not (batch,) integers.
    """
    labels = batch["y"]
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"batch['y'] is {labels.dtype}{list(labels.shape)}; labels must be (batch,) integers")
    if logits.ndim != 2 or logits.shape[:-1] != labels.shape or logits.shape[-1] < 2:
        raise ValueError(
            f"the network returns outputs of shape {logits.shape} for {len(labels)} examples; they must be logits of "
            f"shape (batch, classes), with at least 2 classes"
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    labels = jnp.where(labels < 0, logits.shape[-1], labels)  # a negative index would count from the end
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: jax.Array, batch: Any) -> jax.Array:
    """Whether the label `batch["y"]` of each example has the largest logit: (batch,) float32, 1 or 0."""
    return (logits.argmax(axis=-1) == batch["y"]).astype(jnp.float32)
