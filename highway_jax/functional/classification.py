"""What classifiers are trained and judged by: functions of outputs and batch, for `supervised`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, batch: Any) -> jax.Array:
    """Each example's cross entropy (nats), (batch,), in float32 at least.

    Args:
      logits: (batch, classes), two classes or more.
      batch: of which `batch["y"]` are the labels, (batch,) integers below the number of classes. Of any other label,
        such as -1, the cross entropy is NaN.

    Raises:
      ValueError: for logits of another shape, or labels that are no such integers.
    """
    labels = batch["y"]
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"batch['y'] is {labels.dtype}{list(labels.shape)}; labels must be (batch,) integers")
    if logits.ndim != 2 or logits.shape[:-1] != labels.shape or logits.shape[-1] < 2:
        raise ValueError(
            f"the network gives outputs of shape {logits.shape} for {len(labels)} examples; they must be logits of "
            f"shape (batch, classes), with at least 2 classes"
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    labels = jnp.where(labels < 0, logits.shape[-1], labels)  # which counts from the end otherwise
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: jax.Array, batch: Any) -> jax.Array:
    """1 for each example whose label `batch["y"]` has the largest logit, else 0: (batch,) float32."""
    return (logits.argmax(axis=-1) == batch["y"]).astype(jnp.float32)
