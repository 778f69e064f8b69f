"""CIFAR-100: the convolutional network of Table 3, and the search behind the second row of Figure 2.

    python -m experiments.train --config=cifar100_gap --config.num_runs=5
    python -m experiments.search --config=cifar100_depth50 --config.networks=highway
    python -m experiments.analyze --workdir=runs/cifar100_depth50

Hardware: an accelerator. These configs have not been run on the real images yet.
CIFAR-100 must be prepared once: `python -m experiments.prepare_data --dataset=cifar100`.
"""

from ml_collections import ConfigDict

from experiments.configs.cifar10 import color_images

VARIANTS = ("gap", "depth50")


def get_config(variant: str = "gap") -> ConfigDict:
    config = color_images("cifar100", variant)
    if variant == "gap":
        config.output_std = None  # initialized like the other layers
    return config
