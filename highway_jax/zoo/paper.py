"""The convolutional networks of Tables 1 to 3, as stages for `ConvNet`.

Taken from the authors' released code where it has them (MNIST, GAP), whose parameter counts are the paper's;
otherwise from the paper and, where that refers to them, from the FitNets (arXiv:1412.6550). What neither
says is inferred from the number of layers and parameters, and said so below.
"""


def mnist(width: int) -> tuple[str, ...]:
    """Table 1, 10 layers: 38,986 parameters of width 16, 151,690 of width 32. Gate bias -1, output std 0.1."""
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

# Table 3, 19 layers: 2,256,838 parameters with 10 classes. Gate bias -2, output std 0.05 (CIFAR-100: None).
CIFAR_GAP = (*_THREE_STAGES, "conv 100 1x1", "avgpool 8x8", "dropout 0.2")

# Table 2, 19 layers, about 2.3 M parameters: 2,312,438. The paper says that a fully connected layer stood where
# CIFAR_GAP has its 1x1 convolution; its size and the pooling are FitNet B's.
HIGHWAY_B = (*_THREE_STAGES, "maxpool 8x8", "dropout 0.2", "dense 500", "dropout 0.2")

# Table 2, 11 layers, about 236 K parameters: 235,626. FitNet A's three stages, each begun by a plain layer as in
# the authors' larger network. The dense layer's width is what the parameter count leaves: inferred.
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

# Table 2, 32 layers, receptive fields of 3x3 and 1x1 in turn, about 1.25 M parameters. The widths, and three equal
# stages of ten layers, are inferred from the counts; the head is HIGHWAY_B's with a dense layer as wide as CIFAR_GAP's.
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

# What Tables 2 and 3 compare with, from the sources named; all of them plain networks. `ConvNet` ends in a fully
# connected output layer.

# Romero et al., arXiv:1412.6550. FitNet B's convolutions are those of the configuration that its authors released
# (cifar10_fitnet19: 3 x 32, 2 x 48, 6 x 80, 6 x 128 feature maps of two pieces, no dropout). FitNet A's are the paper's
# FitNet 1 as others have implemented it. The released fully connected layer has five pieces; two give the parameters
# that the paper has for both (250 K and 2.5 M) and for the teacher (9 M), and are inferred from that.

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

# Table 2, 19 layers: 2,548,602 parameters. Its layer 11 is guided by the teacher's layer 2.
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
    """Goodfellow et al., arXiv:1302.4389, as in their released configuration for CIFAR-10."""
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


# Table 2, the FitNets' teacher, 5 layers: 9,046,330 parameters; its pieces are inferred (see above).
TEACHER = maxout(2)

# Table 3; five pieces of each of the 500 units.
MAXOUT = maxout(5)

# Table 3: Network in Network, Lin et al., arXiv:1312.4400, as its authors released it: 966,986 parameters. Its last 1x1
# convolution, before the averaging, is the output layer here, behind it: the same but for a ReLU. That the second
# pooling is an average was not checked against the source.
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

# Table 3: All-CNN-C, Springenberg et al., arXiv:1412.6806: 1,369,738 parameters; its output layer as NIN's.
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
