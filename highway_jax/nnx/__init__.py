"""The layers as Flax NNX modules.

`import highway_jax` leaves this package alone: importing Flax NNX takes time that Linen's users need not spend.
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
