"""Whole networks."""

from highway_jax.models.convnet import ConvNet
from highway_jax.models.mlp import MLP, layer_params
from highway_jax.models.stages import parse

__all__ = ["MLP", "ConvNet", "layer_params", "parse"]
