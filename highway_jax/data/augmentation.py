"""Random changes of training images: pure functions that run inside the compiled step.

Dtypes are explicit, since JAX draws other bits for int64 and float64, its defaults where x64 is on.
"""

import jax
import jax.numpy as jnp
from jax import lax


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Shift each image by up to `padding` pixels in both directions: zero-pad every side, crop to the old size.

    Args:
      key: decides where each image of the batch is cropped.
      images: (batch, height, width, channels).
      padding: pixels on each side; the paper's networks have 8.
    """
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * padding + 1, jnp.int32)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], jnp.int32(0)), (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def random_mirror(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror each image left to right with probability 1/2; shapes as in `random_crop`."""
    mirrored = jax.random.bernoulli(key, jnp.float32(0.5), (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)
