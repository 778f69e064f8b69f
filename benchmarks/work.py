"""The work that all contenders of `benchmarks.population` do."""

import dataclasses

import numpy as np

INPUTS, CLASSES = 784, 10

# Precisions of products of float32 arrays, as `jax.default_matmul_precision` takes them. The last two are algorithms of
# `jax.lax.DotAlgorithmPreset`, which not all devices support.
PRECISIONS = {
    "float32": "float32",
    "tf32": "tensorfloat32",
    "tf32x3": "TF32_TF32_F32_X3",
    "bf16": "BF16_BF16_F32",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """A population of highway networks, trained by SGD with momentum on batches of MNIST's size.

    All runs use relu. Ours nevertheless treats the activation as data and also computes tanh, as in a search. The other
    contenders need not.
    """

    depth: int
    runs: int
    batch: int
    width: int
    steps: int
    runs_per_batch: int | None = None

    def flops(self) -> int:
        """Floating-point operations in the matrix products of one run's step, forward and backward."""
        kernels = INPUTS * self.width + (self.depth - 1) * 2 * self.width**2 + self.width * CLASSES
        return self.batch * (6 * kernels - 2 * INPUTS * self.width)  # the images need no gradient

    def bytes(self) -> int:
        """The minimum number of bytes that one run's step must move.

        Parameters, momentum and gradients are read and written once. The images are read twice. The input, block state
        and gate of every layer are written once and read once.
        """
        parameters = (
            (INPUTS + 1) * self.width
            + (self.depth - 1) * 2 * (self.width + 1) * self.width
            + (self.width + 1) * CLASSES
        )
        activations = 3 * (self.depth - 1) * self.batch * self.width
        return 4 * (6 * parameters + 2 * activations + 2 * self.batch * INPUTS)

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images (steps * batch, 28, 28, 1) uint8 and labels; random, since only their size matters."""
        rng = np.random.default_rng(0)
        count = self.steps * self.batch
        images = rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
        return images, rng.integers(0, CLASSES, count).astype(np.int32)


LEARNING_RATE, MOMENTUM, TRANSFORM_BIAS = 0.01, 0.9, -3.0
