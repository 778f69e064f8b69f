"""From stored images to a network's input: pure functions that run inside the compiled step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from highway_jax.data.dataset import Array


def rescale(images: Array, max_value: int) -> jax.Array:
    """Pixels as float32 in [0, 1]."""
    return jnp.asarray(images, jnp.float32) / max_value


def global_contrast_normalize(images: Array, scale: float = 55.0, min_divisor: float = 1e-8) -> jax.Array:
    """Each image less its mean, of Euclidean norm `scale` (pylearn2's definition).

    An image whose norm is below `min_divisor` before, one of a single grey, is divided by 1.

    Args:
      images: (batch, height, width, channels).
      scale: pylearn2's 55 for CIFAR, whose images have 55.4**2 numbers, gives them a standard deviation of about 1.
      min_divisor: see above.

    Returns:
      float32 of the same shape.
    """
    images = jnp.asarray(images, jnp.float32)
    for _ in range(2):  # the mean's rounding, as large as an almost uniform image's contrast, has a mean too
        images = images - images.mean(axis=(1, 2, 3), keepdims=True)
    divisor = jnp.sqrt(jnp.square(images).sum(axis=(1, 2, 3), keepdims=True)) / scale
    return images / jnp.where(divisor < min_divisor, 1.0, divisor)


def mean_image(images: Array, preprocess: Callable[[Array], jax.Array]) -> jax.Array:
    """Mean of preprocessed images, (height, width, channels): compute it of a training set, once, to subtract."""
    return lax.map(lambda image: preprocess(image[None])[0], images, batch_size=1000).mean(axis=0)
