"""The layers as Flax Linen modules, and networks of them."""

from highway_jax.linen.layers import Dropout, Highway, HighwayConv, HighwayDense, PlainConv, PlainDense
from highway_jax.linen.maxout import Maxout
from highway_jax.linen.mlp import MLP, layer_params

__all__ = [
    "MLP",
    "Dropout",
    "Highway",
    "HighwayConv",
    "HighwayDense",
    "Maxout",
    "PlainConv",
    "PlainDense",
    "layer_params",
]
