"""The search behind the second row of Figure 2, on CIFAR-100: fully connected networks of the paper's size.

    python -m experiments.search --config=cifar100_depth50 --config.networks=highway
    python -m experiments.analyze --workdir=runs/cifar100_depth50

Hardware: made for an accelerator. Not run yet on the real images.
CIFAR-100 has to be prepared once: `python -m experiments.prepare_data --dataset=cifar100`.
"""

from ml_collections import ConfigDict

from experiments.configs.figure1 import random_search

VARIANTS = {"depth50": 50}


def get_config(variant: str = "depth50") -> ConfigDict:
    return random_search("cifar100", depth=VARIANTS[variant], batch_size=100, epochs=400)
