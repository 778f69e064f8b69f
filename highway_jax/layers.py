"""One layer: plain and highway, dense and convolutional.

Each is an ordinary Flax Linen module for use in any model. Whole networks of many equal layers
(`highway_jax.models`) run the same mathematics as one scan instead.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from highway_jax.activations import Activation, activate
from highway_jax.initializers import constant, normalized
from highway_jax.ops import highway

CARRIES = ("coupled", "independent")


class PlainDense(nn.Module):
    """A plain layer, y = H(x): an affine map and an activation (Eq. 1).

    Maps (..., n) to (..., features). Parameters: `h/kernel` (n, features), `h/bias` (features,).

    Attributes:
      features: number of units.
      activation: "relu", "tanh" or a function.
      kernel_init: initializer of the kernel; the normalized one of the activation by default.
      dtype: of the computation; the inputs' and parameters' promoted dtype by default.
      param_dtype: of the parameters.
    """

    features: int
    activation: Activation = "relu"
    kernel_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return activate(_dense(self, self.features, "h")(x), self.activation)


class PlainConv(nn.Module):
    """A plain convolutional layer, y = H(x) (Eq. 1).

    Maps (batch, *spatial, channels) to (batch, *spatial', features). Parameters under `h`.

    Attributes:
      features: number of feature maps.
      kernel_size: receptive field, one number per spatial dimension.
      padding: as in `flax.linen.Conv`.
      activation, kernel_init, dtype, param_dtype: as in `PlainDense`.
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    padding: str = "SAME"
    activation: Activation = "relu"
    kernel_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _check_images(x, self.kernel_size)
        return activate(_conv(self, self.features, self.padding, "h")(x), self.activation)


class HighwayDense(nn.Module):
    """A fully connected highway layer, y = H(x) T(x) + x C(x) (Eq. 2 and 3).

    Maps (..., n) to (..., n): a highway layer keeps its input's width. Parameters live under `h` and `t`
    (and `c`), each with `kernel` (n, n) and `bias` (n,).

    Attributes:
      activation: H's nonlinearity: "relu", "tanh" or a function.
      transform_bias: initial bias of the transform gate (Section 2.2); negative values carry. An
        independent carry gate starts at the opposite bias, hence open where T is closed.
      carry: "coupled" for C = 1 - T (Eq. 3), "independent" for a gate with its own weights (Eq. 2).
      kernel_init, dtype, param_dtype: as in `PlainDense`.

    Raises:
      ValueError: for an unknown activation or carry.
    """

    activation: Activation = "relu"
    transform_bias: float | jax.Array = -1.0
    carry: Literal["coupled", "independent"] = "coupled"
    kernel_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        return _highway(self, x, lambda name, bias: _dense(self, width, name, bias))


class HighwayConv(nn.Module):
    """A convolutional highway layer (Eq. 2 and 3, Section 2.1).

    Maps (batch, *spatial, channels) to the same shape: H and T use receptive fields of one size, with
    zero-padding. Parameters live under `h` and `t` (and `c`), each with `kernel`
    (*kernel_size, channels, channels) and `bias` (channels,).

    Attributes:
      kernel_size: receptive field, one number per spatial dimension.
      activation, transform_bias, carry, kernel_init, dtype, param_dtype: as in `HighwayDense`.

    Raises:
      ValueError: for an unknown activation or carry, or an input with too few dimensions.
    """

    kernel_size: Sequence[int] = (3, 3)
    activation: Activation = "relu"
    transform_bias: float | jax.Array = -1.0
    carry: Literal["coupled", "independent"] = "coupled"
    kernel_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _check_images(x, self.kernel_size)
        channels = x.shape[-1]
        return _highway(self, x, lambda name, bias: _conv(self, channels, "SAME", name, bias))


def _highway(layer: Any, x: jax.Array, affine: Callable[[str, Any], nn.Module]) -> jax.Array:
    if layer.carry not in CARRIES:
        raise ValueError(f"carry is {layer.carry!r}; it must be {' or '.join(map(repr, CARRIES))}")
    h = activate(affine("h", 0.0)(x), layer.activation)
    t = jax.nn.sigmoid(affine("t", layer.transform_bias)(x))
    c = jax.nn.sigmoid(affine("c", -layer.transform_bias)(x)) if layer.carry == "independent" else None
    y = highway(x.astype(h.dtype), h, t, c)
    states = {"block_state": h, "transform_gate": t, "carry_gate": 1 - t if c is None else c, "block_output": y}
    for name, state in states.items():
        layer.sow("intermediates", name, state)
    return y


def _dense(layer: Any, features: int, name: str, bias: Any = 0.0) -> nn.Dense:
    return nn.Dense(features, name=name, **_affine_options(layer, bias))


def _conv(layer: Any, features: int, padding: str, name: str, bias: Any = 0.0) -> nn.Conv:
    return nn.Conv(features, tuple(layer.kernel_size), padding=padding, name=name, **_affine_options(layer, bias))


def _affine_options(layer: Any, bias: Any) -> dict[str, Any]:
    return {
        "kernel_init": layer.kernel_init or normalized(layer.activation),
        "bias_init": constant(bias),
        "dtype": layer.dtype,
        "param_dtype": layer.param_dtype,
    }


def _check_images(x: jax.Array, kernel_size: Sequence[int]) -> None:
    if x.ndim != len(kernel_size) + 2:
        raise ValueError(
            f"a convolution with kernel_size {tuple(kernel_size)} needs an input of "
            f"{len(kernel_size) + 2} dimensions, (batch, *spatial, channels), but got shape {x.shape}"
        )
