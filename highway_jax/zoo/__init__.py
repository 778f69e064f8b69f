"""The networks of the paper, those that it compares with, and how they were trained."""

from highway_jax.zoo.convnet import ConvNet
from highway_jax.zoo.stages import parse

__all__ = ["ConvNet", "parse"]
