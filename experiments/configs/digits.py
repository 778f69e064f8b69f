"""scikit-learn's 8x8 digits, the embedded data: Figure 1, and a small convolutional network.

    python -m experiments.search --config=digits_depth50
    python -m experiments.train --config=digits_conv

Hardware: two CPU cores (AMD EPYC). What it gave there, 100 runs of each network for 30 epochs:

    depth   best loss         mean of the best 10   time
            highway  plain    highway  plain        highway  plain
    10      2.5e-4   2.5e-4   5.4e-4   8.0e-4        12 s    10 s
    20      3.1e-4   9.1e-4   7.6e-4   5.6e-3        21 s    19 s
    50      1.7e-4   8.3e-2   7.0e-4   1.9e-1        50 s    44 s
    100     2.4e-4   5.9e-1   9.9e-4   8.6e-1        99 s    88 s

docs/blocks.md says what comes of other kinds of layers (digits_shortcuts10, 50, 100) and of 1000 of them
(digits_depth1000).
The convolutional network takes 21 s there, and reaches 98.65 % test accuracy.
"""

from ml_collections import ConfigDict

from experiments.configs.convolutional import training
from experiments.configs.figure1 import random_search, very_deep
from highway_jax.blocks import BLOCKS

DEPTHS = {f"depth{depth}": depth for depth in (10, 20, 50, 100)}
SHORTCUTS = {f"shortcuts{depth}": depth for depth in (10, 50, 100)}
VARIANTS = (*DEPTHS, "depth1000", *SHORTCUTS, "conv")

STAGES = (
    "conv 24 3x3",
    "3 highway 3x3",
    "maxpool 2x2",
    "dropout 0.3",
    "3 highway 3x3",
    "maxpool 2x2",
    "dropout 0.4",
)


def get_config(variant: str = "depth50") -> ConfigDict:
    if variant in DEPTHS:
        return random_search("digits", depth=DEPTHS[variant], batch_size=50, epochs=30)
    if variant in SHORTCUTS:
        config = random_search("digits", depth=SHORTCUTS[variant], batch_size=50, epochs=30)
        config.networks = tuple(BLOCKS)
        return config
    if variant == "depth1000":
        return very_deep("digits", batch_size=50, epochs=30)
    config = training("digits", STAGES, epochs=60, batch_size=50)
    config.learning_rate = 0.05
    config.boundaries = (30, 48)
    config.crop_padding = 1
    config.output_std = 0.1
    return config
