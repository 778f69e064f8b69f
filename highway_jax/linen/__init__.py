"""Layers and networks as Flax Linen modules."""

from highway_jax.linen.layers import Dropout, Highway, HighwayConv, HighwayDense, PlainConv, PlainDense, Skippable
from highway_jax.linen.maxout import Maxout
from highway_jax.linen.mlp import MLP, layer_params
from highway_jax.linen.stack import HighwayStack

__all__ = [
    "MLP",
    "Dropout",
    "Highway",
    "HighwayConv",
    "HighwayDense",
    "HighwayStack",
    "Maxout",
    "PlainConv",
    "PlainDense",
    "Skippable",
    "layer_params",
]
