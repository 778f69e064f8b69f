"""Figure 1 on scikit-learn's 8x8 digits: the embedded data, no download.

    python -m experiments.search --config=digits_depth50

Hardware: two CPU cores (AMD EPYC). What it gave there, 100 runs of each network for 30 epochs:

    depth   best loss         mean of the best 10   time
            highway  plain    highway  plain        highway  plain
    10      2.5e-4   2.5e-4   5.4e-4   8.0e-4        12 s    10 s
    20      3.1e-4   9.1e-4   7.6e-4   5.6e-3        21 s    19 s
    50      1.7e-4   8.3e-2   7.0e-4   1.9e-1        50 s    44 s
    100     2.4e-4   5.9e-1   9.9e-4   8.6e-1        99 s    88 s
"""

from ml_collections import ConfigDict

from experiments.configs.figure1 import random_search

VARIANTS = {f"depth{depth}": depth for depth in (10, 20, 50, 100)}


def get_config(variant: str = "depth50") -> ConfigDict:
    return random_search("digits", depth=VARIANTS[variant], batch_size=50, epochs=30)
