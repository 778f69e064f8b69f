"""What classifiers are trained and judged by: functions of outputs and batch, for `supervised`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, batch: Any) -> jax.Array:
    """Each example's cross entropy (nats), (batch,), in float32 at least.

    Args:
      logits: (batch, classes), two classes or more.
      batch: of which `batch["y"]` are the labels, (batch,) integers below the number of classes.

    Raises:
      ValueError: for logits of another shape.
    """
    labels = batch["y"]
    if logits.ndim != 2 or logits.shape[:-1] != labels.shape or logits.shape[-1] < 2:
        raise ValueError(
            f"the network gives outputs of shape {logits.shape} for {len(labels)} examples; they must be logits of "
            f"shape (batch, classes), with at least 2 classes"
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: jax.Array, batch: Any) -> jax.Array:
    """1 for each example whose label `batch["y"]` has the largest logit, else 0: (batch,) float32."""
    return (logits.argmax(axis=-1) == batch["y"]).astype(jnp.float32)
