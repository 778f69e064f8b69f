"""CIFAR-100: the network of Table 3.

    python -m experiments.train --config=cifar100_gap --config.num_runs=5

Hardware: made for an accelerator; 400 epochs are 200,000 steps, as the authors have it.
CIFAR-100 has to be prepared once: `python -m experiments.prepare_data --dataset=cifar100`.
"""

from ml_collections import ConfigDict

from experiments.configs.cifar10 import color_images

VARIANTS = ("gap",)


def get_config(variant: str = "gap") -> ConfigDict:
    config = color_images("cifar100", variant)
    config.output_std = None  # drawn as the other layers' weights
    return config
