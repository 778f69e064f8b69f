"""Pure functions of arrays: the highway operation, activations, initializers, convolution and pooling."""

from highway_jax.functional.ops import highway, resize

__all__ = ["highway", "resize"]
