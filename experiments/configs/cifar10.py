"""The search behind the analysis of Section 4 on CIFAR-10: fully connected networks of the paper's size.

    python -m experiments.search --config=cifar10_depth50 --config.networks=highway
    python -m experiments.analyze --workdir=runs/cifar10_depth50

Hardware: made for an accelerator. On two CPU cores (AMD EPYC), 16 runs of 20 epochs take 17 minutes and end at a best
loss of 1.43 on a copy of the images re-encoded as JPEG, a network that uses none of its depth (docs/gates.md).
CIFAR-10 has to be prepared once: `python -m experiments.prepare_data --dataset=cifar10`.
"""

from ml_collections import ConfigDict

from experiments.configs.figure1 import random_search

VARIANTS = {"depth50": 50}


def get_config(variant: str = "depth50") -> ConfigDict:
    return random_search("cifar10", depth=VARIANTS[variant], batch_size=100, epochs=400)
