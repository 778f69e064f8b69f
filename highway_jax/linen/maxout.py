"""Maxout, the layer of networks that Tables 1 to 3 compare with highway networks."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from highway_jax.functional.convolution import implemented, window
from highway_jax.functional.initializers import normalized


class Maxout(nn.Module):
    """A maxout layer: each unit is the maximum of several affine maps (Goodfellow et al., arXiv:1302.4389).

    It maps `(..., n)` to `(..., features)` or, with a kernel size, `(batch, *spatial, channels)` to
    `(batch, *spatial', features)`. Its parameters are `h/kernel` `(*kernel_size, n, features * pieces)` and `h/bias`
    `(features * pieces,)`, in which the pieces of a unit are adjacent. It sows `block_output` into the collection
    `intermediates`.

    Attributes:
      features: the number of units or feature maps.
      kernel_size: the size of the receptive field, one number per spatial dimension; None for a fully connected layer.
      pieces: the number of affine maps of a unit.
      padding: as in `flax.linen.Conv`.
      kernel_init: the initializer of the kernel; by default He's, as for a rectifier.
      dtype: the dtype of the computation; by default, the promoted dtype of input and parameters.
      param_dtype: the dtype of the parameters.
      implementation: of a convolution, as in `PlainConv`.

    Raises:
      ValueError: if the kernel size is invalid or the implementation is unknown.

    Example:
      ```python
      x = Maxout(64, kernel_size=(5, 5))(images)
      ```
    """

    features: int
    kernel_size: Sequence[int] | None = None
    pieces: int = 2
    padding: str | Sequence[tuple[int, int]] = "SAME"
    kernel_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x `(..., n)` or `(batch, *spatial, channels)`."""
        size = self.features * self.pieces
        options: dict[str, Any] = {
            "kernel_init": self.kernel_init or normalized("relu"),
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "name": "h",
        }
        if self.kernel_size is None:
            z = nn.Dense(size, **options)(x)
        else:
            options |= {"padding": self.padding, "conv_general_dilated": implemented(self.implementation)}
            z = nn.Conv(size, window(self.kernel_size), **options)(x)
        y = z.reshape(*z.shape[:-1], self.features, self.pieces).max(axis=-1)
        self.sow("intermediates", "block_output", y)
        return y
