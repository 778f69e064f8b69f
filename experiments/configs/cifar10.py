"""CIFAR-10: the convolutional networks of Tables 2 and 3, and the search behind the analysis of Section 4.

    python -m experiments.train --config=cifar10_gap --config.num_runs=5
    python -m experiments.train --config=cifar10_fitnet_teacher
    python -m experiments.train --config=cifar10_fitnet_b --config.teacher=runs/cifar10_fitnet_teacher
    python -m experiments.search --config=cifar10_depth50 --config.networks=highway
    python -m experiments.analyze --workdir=runs/cifar10_depth50

Hardware: an accelerator. The convolutional networks train for the authors' 200,000 steps, which are 400 epochs.
On two CPU cores (AMD EPYC), a search with 16 runs of 20 epochs takes 17 minutes. On a copy of the images re-encoded as
JPEG it reaches a best loss of 1.42, with a network that uses none of its depth (docs/gates.md).
CIFAR-10 must be prepared once: `python -m experiments.prepare_data --dataset=cifar10`.
"""

from ml_collections import ConfigDict

from experiments.configs.convolutional import training
from experiments.configs.figure1 import random_search
from highway_jax.zoo import paper

STAGES = {
    "highway_a": paper.HIGHWAY_A,
    "highway_b": paper.HIGHWAY_B,
    "highway_c": paper.HIGHWAY_C,
    "gap": paper.CIFAR_GAP,
    "fitnet_teacher": paper.TEACHER,
    "fitnet_a": paper.FITNET_A,
    "fitnet_b": paper.FITNET_B,
    "maxout": paper.MAXOUT,
    "nin": paper.NIN,
    "all_cnn": paper.ALL_CNN,
}
# The paper's guideline is -1, -2 and -3 at depths of about 10, 20 and 30.
TRANSFORM_BIAS = {"highway_a": -1.0, "highway_b": -2.0, "highway_c": -3.0, "gap": -2.0}
# FitNet B's guided layer is its authors' choice. FitNet A's is the last layer no smaller than the teacher's second.
GUIDED_LAYER = {"fitnet_a": 6, "fitnet_b": 11}
VARIANTS = (*STAGES, "depth50")


def get_config(variant: str = "gap") -> ConfigDict:
    return color_images("cifar10", variant)


def color_images(dataset: str, variant: str) -> ConfigDict:
    """The authors' settings for CIFAR-10 and (but for the output layer) CIFAR-100, or a search like that on MNIST."""
    if variant == "depth50":
        return random_search(dataset, depth=50, batch_size=100, epochs=400)
    config = training(dataset, STAGES[variant], epochs=400)
    config.preprocessing = "contrast"
    config.crop_padding = 8
    config.mirror = True
    if variant in TRANSFORM_BIAS:
        config.transform_bias = TRANSFORM_BIAS[variant]
    else:
        config.block = "plain"
    if variant in GUIDED_LAYER:
        config.guided_layer = GUIDED_LAYER[variant]
        config.hint_epochs = 100
    config.learning_rate = 0.025
    config.boundaries = (200, 300, 350)
    config.output_std = 0.05
    return config
