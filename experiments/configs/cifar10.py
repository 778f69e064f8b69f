"""CIFAR-10: the convolutional networks of Tables 2 and 3.

    python -m experiments.train --config=cifar10_gap --config.num_runs=5

Hardware: made for an accelerator; 400 epochs are 200,000 steps, as the authors have it.
CIFAR-10 has to be prepared once: `python -m experiments.prepare_data --dataset=cifar10`.
"""

from ml_collections import ConfigDict

from experiments.configs.convolutional import training
from highway_jax.models import paper

STAGES = {
    "highway_a": paper.HIGHWAY_A,
    "highway_b": paper.HIGHWAY_B,
    "highway_c": paper.HIGHWAY_C,
    "gap": paper.CIFAR_GAP,
}
# The paper's guideline: -1, -2 and -3 at a depth of about 10, 20 and 30.
TRANSFORM_BIAS = {"highway_a": -1.0, "highway_b": -2.0, "highway_c": -3.0, "gap": -2.0}
VARIANTS = tuple(STAGES)


def get_config(variant: str = "gap") -> ConfigDict:
    return color_images("cifar10", variant)


def color_images(dataset: str, variant: str) -> ConfigDict:
    """The authors' settings for CIFAR-10 and, with another output layer, CIFAR-100."""
    config = training(dataset, STAGES[variant], epochs=400)
    config.preprocessing = "contrast"
    config.crop_padding = 8
    config.mirror = True
    config.transform_bias = TRANSFORM_BIAS[variant]
    config.learning_rate = 0.025
    config.boundaries = (200, 300, 350)
    config.output_std = 0.05
    return config
