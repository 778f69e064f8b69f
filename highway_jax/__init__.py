"""Highway networks in JAX and Flax: "Training Very Deep Networks" (Srivastava, Greff and Schmidhuber, 2015)."""

from highway_jax.functional import highway
from highway_jax.functional.activations import activate
from highway_jax.linen import (
    MLP,
    Dropout,
    Highway,
    HighwayConv,
    HighwayDense,
    HighwayStack,
    PlainConv,
    PlainDense,
    Skippable,
)
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
    "HighwayStack",
    "Kind",
    "PlainConv",
    "PlainDense",
    "Skippable",
    "activate",
    "highway",
]
