"""MNIST: Figure 1 at the paper's size (100 runs of each network for 400 epochs), and the networks of Table 1.

    python -m experiments.search --config=mnist_depth10 --config.num_runs=10 --config.epochs=2
    python -m experiments.train --config=mnist_conv16 --config.epochs=12 \\
        --config.learning_rate=0.05 --config.boundaries="(8, 11)"

Hardware: an accelerator for the full configs. On two CPU cores (AMD EPYC), the first command takes 17 s and reaches a
best loss of 0.13 (highway) and 0.16 (plain). The second takes 7 minutes and reaches 99.10 % test accuracy
(results/mnist_conv16), with 12 epochs at a higher learning rate; the paper's 300 epochs reach 99.43 %.
On one H100, all 300 epochs of mnist_conv32 take 7 minutes and reach 99.52 % (results/mnist_conv32; the paper 99.55 %).
MNIST must be prepared once: `python -m experiments.prepare_data --dataset=mnist`.
"""

from ml_collections import ConfigDict

from experiments.configs.convolutional import training
from experiments.configs.figure1 import random_search, very_deep
from highway_jax.zoo import paper

DEPTHS = {f"depth{depth}": depth for depth in (10, 20, 50, 100)}
WIDTHS = {f"conv{width}": width for width in (16, 32)}
VARIANTS = (*DEPTHS, "depth1000", *WIDTHS)


def get_config(variant: str = "depth50") -> ConfigDict:
    if variant in DEPTHS:
        return random_search("mnist", depth=DEPTHS[variant], batch_size=100, epochs=400)
    if variant == "depth1000":
        return very_deep("mnist", batch_size=100, epochs=20)
    config = training("mnist", paper.mnist(WIDTHS[variant]), epochs=300)  # the authors' 180,000 steps
    config.boundaries = (100, 200)
    config.output_std = 0.1
    return config
