"""Highway networks in JAX and Flax: "Training Very Deep Networks" (Srivastava, Greff, Schmidhuber 2015)."""

from highway_jax.blocks import Block
from highway_jax.layers import Dropout, Highway, HighwayConv, HighwayDense, PlainConv, PlainDense
from highway_jax.models import MLP, ConvNet
from highway_jax.ops import highway

__version__ = "0.1.0"
__all__ = [
    "MLP",
    "Block",
    "ConvNet",
    "Dropout",
    "Highway",
    "HighwayConv",
    "HighwayDense",
    "PlainConv",
    "PlainDense",
    "highway",
]
