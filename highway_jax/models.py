"""Whole networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype

from highway_jax.activations import Activation
from highway_jax.initializers import column_blocks, constant, layerwise, normalized
from highway_jax.layers import PlainDense
from highway_jax.stack import highway_stack, highway_states, plain_stack, plain_states

BLOCKS = ("highway", "plain")


class MLP(nn.Module):
    """The fully connected networks of Section 3.1, highway or plain, of any depth.

    A plain layer to `width`, then `depth - 1` highway (or plain) layers as one scan, then the output layer.
    Maps (batch, ...) to logits (batch, num_classes); images are flattened.

    Parameters: `input/h`, `output`, and `layers`, which holds all layers' weights stacked: `kernel`
    (depth - 1, width, 2 * width) and `bias` (depth - 1, 2 * width) with H's columns before T's, or width
    instead of 2 * width for plain layers. `layer_params` hands them out layer by layer as `h` and `t`.

    Every layer's inner states are sown into the `intermediates` collection, each with a leading layer
    axis: `model.apply(variables, x, mutable="intermediates")` gives `transform_gate`, `carry_gate`,
    `block_state` and `block_output` under `layers` (`block_output` alone in a plain network).

    Attributes:
      depth: layers as the paper counts them: depth 10 is the first plain layer and nine further ones.
      width: blocks (highway) or units (plain) per layer; the paper has 50 and 71.
      num_classes: size of the output.
      block: "highway" or "plain".
      activation: "relu", "tanh", a function, or a traced index into `highway_jax.activations.ACTIVATIONS`.
      transform_bias: initial bias of the transform gates; may be traced. Plain networks ignore it.
      dtype: of the computation; the inputs' and parameters' promoted dtype by default.
      param_dtype: of the parameters.

    Raises:
      ValueError: for a depth below 2, a width or class count below 1, an unknown block or activation.
    """

    depth: int = 10
    width: int = 50
    num_classes: int = 10
    block: str = "highway"
    activation: Activation = "relu"
    transform_bias: float | jax.Array = -1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for name, least in ("depth", 2), ("width", 1), ("num_classes", 1):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.block not in BLOCKS:
            raise ValueError(f"block is {self.block!r}; it must be one of {', '.join(map(repr, BLOCKS))}")
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.reshape(x.shape[0], -1)
        x = PlainDense(self.width, self.activation, name="input", **dtypes)(x)
        stack = _HighwayStack if self.block == "highway" else _PlainStack
        x = stack(self.depth - 1, self.activation, self.transform_bias, name="layers", **dtypes)(x)
        return nn.Dense(self.num_classes, kernel_init=normalized(self.activation), name="output", **dtypes)(x)


class _Stack(nn.Module):
    length: int
    activation: Activation
    transform_bias: float | jax.Array
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def _weights(self, x: jax.Array, parts: int, bias_init: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        width = x.shape[-1]
        kernel_init = layerwise(column_blocks(normalized(self.activation), parts))
        kernel = self.param("kernel", kernel_init, (self.length, width, parts * width), self.param_dtype)
        bias = self.param("bias", bias_init, (self.length, parts * width), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x, kernel, bias

    def _sow(self, states: Any, *args: Any) -> None:
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            for name, value in states(*args, self.activation).items():
                self.sow("intermediates", name, value)


class _PlainStack(_Stack):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        args = self._weights(x, 1, constant(0.0))
        self._sow(plain_states, *args)
        return plain_stack(*args, self.activation)


class _HighwayStack(_Stack):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def bias_init(key, shape, dtype):
            half = (*shape[:-1], shape[-1] // 2)
            return jnp.concatenate([jnp.zeros(half, dtype), jnp.full(half, self.transform_bias, dtype)], axis=-1)

        args = self._weights(x, 2, bias_init)
        self._sow(highway_states, *args)
        return highway_stack(*args, self.activation)


def layer_params(params: Any) -> dict[str, dict[str, jax.Array]]:
    """Hand out an MLP's stacked weights as single layers' own parameters.

    Args:
      params: the `params` collection of an `MLP`.

    Returns:
      `{"h": {"kernel", "bias"}, "t": {...}}` (no `t` for a plain network), each leaf with a leading layer
      axis; index it to get the parameters of one `HighwayDense` or `PlainDense`.
    """
    kernel, bias = params["layers"]["kernel"], params["layers"]["bias"]
    width = kernel.shape[-2]
    parts = kernel.shape[-1] // width
    kernels, biases = jnp.split(kernel, parts, axis=-1), jnp.split(bias, parts, axis=-1)
    return {name: {"kernel": k, "bias": b} for name, k, b in zip("htc"[:parts], kernels, biases, strict=True)}
