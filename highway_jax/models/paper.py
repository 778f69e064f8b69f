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
