"""Highway networks in JAX and Flax: "Training Very Deep Networks" (Srivastava, Greff, Schmidhuber 2015)."""

from highway_jax.functional.ops import highway
from highway_jax.linen import MLP
from highway_jax.linen.layers import Dropout, Highway, HighwayConv, HighwayDense, PlainConv, PlainDense
from highway_jax.stack.kinds import Kind
from highway_jax.zoo import ConvNet

__version__ = "0.1.0"
__all__ = [
    "MLP",
    "ConvNet",
    "Dropout",
    "Highway",
    "HighwayConv",
    "HighwayDense",
    "Kind",
    "PlainConv",
    "PlainDense",
    "highway",
]
