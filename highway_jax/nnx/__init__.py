"""Layers as Flax NNX modules.

`import highway_jax` does not import this package, since Flax NNX takes time to import.
"""

from highway_jax.nnx.layers import (
    Dropout,
    Highway,
    HighwayConv,
    HighwayDense,
    HighwayStack,
    PlainConv,
    PlainDense,
    Skippable,
)

__all__ = ["Dropout", "Highway", "HighwayConv", "HighwayDense", "HighwayStack", "PlainConv", "PlainDense", "Skippable"]
