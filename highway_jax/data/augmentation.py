"""Random augmentation of training images, by pure functions that run inside the compiled step.

Dtypes are explicit, because JAX draws different bits for int64 and float64, which are its defaults if x64 is enabled.
"""

import jax
import jax.numpy as jnp
from jax import lax


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Shift each image by up to `padding` pixels in both directions, by zero-padding and cropping to the old size.

    Args:
      key: the random key for where each image of the batch is cropped.
      images: (batch, height, width, channels).
      padding: the number of pixels on each side; 8 in the paper.

    Returns:
      Images of the same shape and dtype.

    Example:
      ```python
      augment = lambda key, batch: {**batch, "x": data.random_crop(key, batch["x"], padding=4)}
      ```
    """
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * padding + 1, jnp.int32)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], jnp.int32(0)), (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def random_mirror(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror each image left to right with probability 1/2.

    Args:
      key: the random key for which images are mirrored.
      images: (batch, height, width, channels).

    Returns:
      Images of the same shape and dtype.
    """
    mirrored = jax.random.bernoulli(key, jnp.float32(0.5), (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)
