"""The convolutional networks of Tables 1 to 3, as stages for `ConvNet`.

Two networks (MNIST and GAP) are from the authors' released code, and their numbers of parameters are those of the
paper. The others are from the paper and, where the paper refers to it, from the FitNets paper (arXiv:1412.6550).
Details that are in neither are inferred from the numbers of layers and parameters, and marked below.
"""


def mnist(width: int) -> tuple[str, ...]:
    """The stages of the network for MNIST (Table 1, 10 layers).

    It has 38,986 parameters with width 16 and 151,690 with width 32. The authors used a transform bias of -1 and an
    output std of 0.1.
    """
    return (
        "dropout 0.2",
        f"conv {width} 5x5 valid",
        "2 highway 3x3",
        "maxpool 3x3 /2",
        "dropout 0.3",
        "3 highway 3x3",
        "maxpool 3x3 /2",
        "dropout 0.4",
        "3 highway 3x3",
        "maxpool 2x2",
        "dropout 0.5",
    )


MNIST_16 = mnist(16)
MNIST_32 = mnist(32)

_THREE_STAGES = (
    "dropout 0.2",
    "conv 32 3x3",
    "4 highway 3x3",
    "maxpool 2x2",
    "dropout 0.2",
    "conv 80 3x3",
    "5 highway 3x3",
    "maxpool 2x2",
    "dropout 0.2",
    "conv 128 3x3",
    "5 highway 3x3",
)

# Table 3, 19 layers: 2,256,838 parameters with 10 classes. Transform bias -2, output std 0.05 (CIFAR-100: None).
CIFAR_GAP = (*_THREE_STAGES, "conv 100 1x1", "avgpool 8x8", "dropout 0.2")

# Table 2, 19 layers, about 2.3 M parameters: 2,312,438. According to the paper, a fully connected layer takes the place
# of CIFAR_GAP's 1x1 convolution. Its size and the pooling are those of FitNet B.
HIGHWAY_B = (*_THREE_STAGES, "maxpool 8x8", "dropout 0.2", "dense 500", "dropout 0.2")

# Table 2, 11 layers, about 236 K parameters: 235,626. The three stages of FitNet A, each of which starts with a plain
# layer as in the authors' larger network. The width of the dense layer is inferred from the number of parameters.
HIGHWAY_A = (
    "dropout 0.2",
    "conv 16 3x3",
    "2 highway 3x3",
    "maxpool 2x2",
    "dropout 0.2",
    "conv 32 3x3",
    "2 highway 3x3",
    "maxpool 2x2",
    "dropout 0.2",
    "conv 48 3x3",
    "2 highway 3x3",
    "maxpool 2x2",
    "dropout 0.2",
    "dense 112",
    "dropout 0.2",
)

_ALTERNATING = (*("highway 1x1", "highway 3x3") * 4, "highway 1x1")

# Table 2, 32 layers, alternating receptive fields of 3x3 and 1x1, about 1.25 M parameters. The widths and the three
# equal stages of ten layers are inferred from the numbers of layers and parameters. The head is that of HIGHWAY_B, with
# a dense layer as wide as CIFAR_GAP's 1x1 convolution.
HIGHWAY_C = (
    "dropout 0.2",
    "conv 32 3x3",
    *_ALTERNATING,
    "maxpool 2x2",
    "dropout 0.2",
    "conv 64 3x3",
    *_ALTERNATING,
    "maxpool 2x2",
    "dropout 0.2",
    "conv 96 3x3",
    *_ALTERNATING,
    "maxpool 8x8",
    "dropout 0.2",
    "dense 100",
    "dropout 0.2",
)

# The networks that Tables 2 and 3 compare with, from the sources below. All are plain networks. `ConvNet` adds a fully
# connected output layer.

# Romero et al., arXiv:1412.6550. The convolutions of FitNet B are those of the configuration that its authors released
# (cifar10_fitnet19: 3 x 32, 2 x 48, 6 x 80, 6 x 128 feature maps of two pieces, no dropout). Those of FitNet A are the
# paper's FitNet 1 as others have implemented it. The released fully connected layer has five pieces. Here it has two,
# inferred from the paper's numbers of parameters for both networks (250 K and 2.5 M) and for the teacher (9 M).

# Table 2, 11 layers: 251,194 parameters.
FITNET_A = (
    "3 maxout 16 3x3",
    "maxpool 2x2",
    "3 maxout 32 3x3",
    "maxpool 2x2",
    "2 maxout 48 3x3",
    "maxout 64 3x3",
    "maxpool 8x8",
    "maxout 500",
)

# Table 2, 19 layers: 2,548,602 parameters. The teacher's layer 2 guides its layer 11.
FITNET_B = (
    "3 maxout 32 3x3",
    "2 maxout 48 3x3",
    "maxpool 2x2",
    "6 maxout 80 3x3",
    "maxpool 2x2",
    "6 maxout 128 3x3",
    "maxpool 8x8",
    "maxout 500",
)


def maxout(pieces: int) -> tuple[str, ...]:
    """The stages of the maxout network for CIFAR-10 (Goodfellow et al., arXiv:1302.4389), as released by its authors.

    Args:
      pieces: the number of pieces of a unit in the fully connected layer.
    """
    return (
        "dropout 0.2",
        "maxout 96 8x8 pad 4",
        "maxpool 4x4 /2",
        "dropout 0.5",
        "maxout 192 8x8 pad 3",
        "maxpool 4x4 /2",
        "dropout 0.5",
        "maxout 192 5x5 pad 3",
        "maxpool 2x2",
        "dropout 0.5",
        f"maxout 500 of {pieces}",
        "dropout 0.5",
    )


# Table 2, the teacher of the FitNets, 5 layers: 9,046,330 parameters. The number of pieces is inferred (see above).
TEACHER = maxout(2)

# Table 3, with five pieces for each of the 500 units.
MAXOUT = maxout(5)

# Table 3: Network in Network (Lin et al., arXiv:1312.4400), as its authors released it: 966,986 parameters. Its last
# 1x1 convolution precedes the average pooling; here it is the output layer after the pooling, which is equivalent
# except for a ReLU. That the second pooling is an average has not been checked against the source.
NIN = (
    "conv 192 5x5",
    "conv 160 1x1",
    "conv 96 1x1",
    "maxpool 3x3 /2",
    "dropout 0.5",
    "conv 192 5x5",
    "2 conv 192 1x1",
    "avgpool 3x3 /2",
    "dropout 0.5",
    "conv 192 3x3",
    "conv 192 1x1",
    "avgpool 8x8",
)

# Table 3: All-CNN-C (Springenberg et al., arXiv:1412.6806): 1,369,738 parameters. The output layer is as in NIN.
ALL_CNN = (
    "dropout 0.2",
    "2 conv 96 3x3",
    "conv 96 3x3 /2",
    "dropout 0.5",
    "2 conv 192 3x3",
    "conv 192 3x3 /2",
    "dropout 0.5",
    "conv 192 3x3 valid",
    "conv 192 1x1",
    "avgpool 6x6",
)
