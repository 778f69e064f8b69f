"""Stacks of equal layers: kinds of layers, their scan, and kernels for a CPU and an NVIDIA GPU."""

from highway_jax.stack.scan import stack, states

__all__ = ["stack", "states"]
