"""Many equal layers as one scan: kinds of layers, the scan, and a kernel of our own for it on a CPU."""

from highway_jax.stack.scan import stack, states

__all__ = ["stack", "states"]
