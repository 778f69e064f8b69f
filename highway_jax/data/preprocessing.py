"""Preprocessing of stored images, by pure functions that run inside the compiled step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from highway_jax.data.dataset import Array


def rescale(images: Array, max_value: int) -> jax.Array:
    """Convert pixels from 0 to `max_value` to float32 in [0, 1]."""
    return jnp.asarray(images, jnp.float32) / max_value


def global_contrast_normalize(images: Array, scale: float = 55.0, min_divisor: float = 1e-8) -> jax.Array:
    """Subtract from each image its mean, and scale it to the Euclidean norm `scale` (as defined in pylearn2).

    Args:
      images: (batch, height, width, channels).
      scale: the norm. pylearn2's value of 55 gives CIFAR images, which have 55.4**2 numbers, a standard deviation of
        about 1.
      min_divisor: an image is not scaled if its norm divided by `scale` is below this, as for a uniform image.

    Returns:
      Images of the same shape, in float32.
    """
    images = jnp.asarray(images, jnp.float32)
    for _ in range(2):  # the rounding error of the mean can be as large as the contrast of an almost uniform image
        images = images - images.mean(axis=(1, 2, 3), keepdims=True)
    divisor = jnp.sqrt(jnp.square(images).sum(axis=(1, 2, 3), keepdims=True)) / scale
    return images / jnp.where(divisor < min_divisor, 1.0, divisor)


def mean_image(images: Array, preprocess: Callable[[Array], jax.Array]) -> jax.Array:
    """The mean of preprocessed images, to be computed once from a training set and subtracted from all images.

    Args:
      images: (n, height, width, channels), as stored.
      preprocess: a function of a batch of images.

    Returns:
      The mean, (height, width, channels).
    """
    return lax.map(lambda image: preprocess(image[None])[0], images, batch_size=1000).mean(axis=0)
