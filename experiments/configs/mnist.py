"""Figure 1 on MNIST, at the paper's size: 100 runs of each network for 400 epochs.

    python -m experiments.search --config=mnist_depth10 --config.num_runs=10 --config.epochs=2

Hardware: made for an accelerator. The command above takes 17 s on two CPU cores (AMD EPYC) and ends, highway and
plain, at a best loss of 0.13 and 0.16.
MNIST has to be prepared once: `python -m experiments.prepare_data --dataset=mnist`.
"""

from ml_collections import ConfigDict

from experiments.configs.figure1 import random_search

VARIANTS = {f"depth{depth}": depth for depth in (10, 20, 50, 100)}


def get_config(variant: str = "depth50") -> ConfigDict:
    return random_search("mnist", depth=VARIANTS[variant], batch_size=100, epochs=400)
