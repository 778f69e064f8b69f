"""JAX's random numbers, drawn faster on a CPU.

On a CPU, JAX compiles Threefry (Salmon et al., 2011) to a loop of many small operations. Unrolled, it is a single pass
over the numbers. The numbers are equal bit for bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = np.uint32(0x1BD11BDA)


def bernoulli(key: jax.Array, p: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw the same booleans as `jax.random.bernoulli(key, p, shape)`, True with probability p.

    Args:
      key: a random key of any implementation. Only JAX's default, partitionable Threefry is faster.
      p: the probability, of shape ().
      shape: the shape of the result.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    threefry = typed and jax.random.key_impl(key) == "threefry2x32" and jax.threefry_partitionable.value
    if not threefry or p.dtype != jnp.float32 or int(np.prod(shape)) >= 2**32:
        return jax.random.bernoulli(key, p, shape)
    return lax.platform_dependent(
        key,
        p,
        cpu=lambda key, p: _bernoulli(jax.random.key_data(key), p, shape),
        default=lambda key, p: jax.random.bernoulli(key, p, shape),
    )


def _bernoulli(key: jax.Array, p: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    size = int(np.prod(shape))
    half = -(-size // 2)

    def draw(first):
        counts = first + lax.iota(jnp.uint32, half)
        high, low = _threefry(key, jnp.zeros_like(counts), counts)
        mantissa = (high ^ low) >> np.uint32(9) | np.float32(1).view(np.uint32)
        return lax.bitcast_convert_type(mantissa, jnp.float32) - 1 < p

    # Without the loop, XLA would draw the numbers again for each of their uses.
    halves = lax.map(draw, jnp.arange(2, dtype=jnp.uint32) * half)
    return halves.reshape(-1)[:size].reshape(shape)


def _threefry(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds."""
    keys = key[0], key[1], key[0] ^ key[1] ^ PARITY
    x, y = x + keys[0], y + keys[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x += y
            y = x ^ (y << np.uint32(rotation) | y >> np.uint32(32 - rotation))
        x, y = x + keys[(block + 1) % 3], y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x, y
