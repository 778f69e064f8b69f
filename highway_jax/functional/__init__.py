"""Arrays in, arrays out: the highway operation, activations, initializers, convolution, pooling."""

from highway_jax.functional.ops import highway, resize

__all__ = ["highway", "resize"]
