"""Figure 1 on scikit-learn's 8x8 digits: the embedded data, no download.

    python -m experiments.search --config=digits_depth50

Hardware: two CPU cores. Time: MEASURE.
Expect, as best mean training loss, highway and plain: MEASURE.
"""

from ml_collections import ConfigDict

from experiments.configs.figure1 import random_search

VARIANTS = {f"depth{depth}": depth for depth in (10, 20, 50, 100)}


def get_config(variant: str = "depth50") -> ConfigDict:
    return random_search("digits", depth=VARIANTS[variant], batch_size=50, epochs=30)
