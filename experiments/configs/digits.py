"""scikit-learn's 8x8 digits, which need no download: Figure 1, and small convolutional networks.

    python -m experiments.search --config=digits_depth50
    python -m experiments.train --config=digits_conv
    python -m experiments.train --config=digits_conv_depth32 [--config.block=plain]

Hardware: two CPU cores (AMD EPYC). Results there, with 100 runs of each network for 30 epochs:

    depth   best loss         mean of the best 10   time
            highway  plain    highway  plain        highway  plain
    10      2.8e-4   2.4e-4   5.6e-4   5.5e-4       8 s     7 s
    20      3.0e-4   2.9e-3   7.5e-4   7.0e-3      13 s    13 s
    50      1.7e-4   7.9e-2   6.6e-4   1.7e-1      31 s    29 s
    100     1.6e-4   6.4e-1   9.8e-4   8.0e-1      60 s    56 s

Other CPUs round differently: the best loss of a hundred runs may differ by a factor of two, a test accuracy by a few
images.

docs/blocks.md has the results of other kinds of layers (digits_shortcuts10, 50, 100) and of networks with 1000 layers
(digits_depth1000).

The convolutional network takes 21 s there and reaches 98.65 % test accuracy. Of 12 convolutional networks of 32 layers,
at 12 learning rates, 7 reach 96 % or more, and the best reaches 98.99 %. None of their plain twins gets beyond chance,
8.42 % (docs/images/conv_depth32.png). Each set of twelve takes 3 to 4 minutes.

    python -m experiments.train --config=digits_fitnet_teacher
    python -m experiments.train --config=digits_fitnet --config.teacher=runs/digits_fitnet_teacher

The last two train a thin maxout network of 19 layers, modelled on the FitNets, and its teacher. The teacher reaches
98.99 %. The thin network reaches 88.89 % by plain backpropagation (best of 4 runs; 61.45 ± 31.63) and 13.80 % with
hints (best of 4 runs): in 5 epochs its guided layers learn to predict little more than the mean hint. The authors of
the FitNets trained with RMSProp, and this config trains with momentum SGD.
"""

from ml_collections import ConfigDict

from experiments.configs.convolutional import training
from experiments.configs.figure1 import WIDTHS, random_search, very_deep

DEPTHS = {f"depth{depth}": depth for depth in (10, 20, 50, 100)}
SHORTCUTS = {f"shortcuts{depth}": depth for depth in (10, 50, 100)}
VARIANTS = (*DEPTHS, "depth1000", *SHORTCUTS, "conv", "conv_depth32", "fitnet", "fitnet_teacher")

STAGES = (
    "conv 24 3x3",
    "3 highway 3x3",
    "maxpool 2x2",
    "dropout 0.3",
    "3 highway 3x3",
    "maxpool 2x2",
    "dropout 0.4",
)

# Three stages of ten layers, as in `highway_jax.zoo.paper.HIGHWAY_C`.
STAGES_DEPTH32 = (
    "conv 16 3x3",
    "10 highway 3x3",
    "maxpool 2x2",
    "10 highway 3x3",
    "maxpool 2x2",
    "10 highway 3x3",
)

# The FitNets and their teacher (paper.FITNET_B, TEACHER), scaled down to images a sixteenth of the size.
FITNET_TEACHER = ("maxout 32 3x3", "maxpool 2x2", "maxout 64 3x3", "maxpool 2x2", "maxout 64 3x3", "maxout 100")
FITNET = (
    "6 maxout 8 3x3",
    "maxpool 2x2",
    "6 maxout 12 3x3",
    "maxpool 2x2",
    "5 maxout 16 3x3",
    "maxout 50",
)


def get_config(variant: str = "depth50") -> ConfigDict:
    if variant in DEPTHS:
        return random_search("digits", depth=DEPTHS[variant], batch_size=50, epochs=30)
    if variant in SHORTCUTS:
        config = random_search("digits", depth=SHORTCUTS[variant], batch_size=50, epochs=30)
        config.networks = tuple(WIDTHS)
        return config
    if variant == "depth1000":
        return very_deep("digits", batch_size=50, epochs=30)
    if variant == "conv_depth32":
        config = training("digits", STAGES_DEPTH32, epochs=20, batch_size=50)
        config.num_runs = 12
        with config.ignore_type():
            config.learning_rate = (2e-3, 0.2)  # drawn for each run, the same for the plain twins
        config.boundaries = (15,)
        config.transform_bias = -3.0
    elif variant == "fitnet":
        config = training("digits", FITNET, epochs=20, batch_size=50)
        config.block = "plain"
        config.num_runs = 4
        with config.ignore_type():
            config.learning_rate = (2e-3, 5e-2)  # drawn for each run, the same with and without a teacher
        config.boundaries = (14, 18)
        config.guided_layer = 11
        config.hint_epochs = 5
    else:
        config = training("digits", STAGES, epochs=60, batch_size=50)
        config.learning_rate = 0.05
        config.boundaries = (30, 48)
    if variant == "fitnet_teacher":
        config.stages = FITNET_TEACHER
        config.block = "plain"
    config.crop_padding = 1
    config.output_std = 0.1
    return config
