"""The fully connected networks of Section 3.1."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype

from highway_jax.activations import Activation
from highway_jax.initializers import column_blocks, layerwise, normalized
from highway_jax.layers import CARRIES, PlainDense
from highway_jax.models.stages import BLOCKS
from highway_jax.stack import highway_stack, highway_states, plain_stack, plain_states


class MLP(nn.Module):
    """The fully connected networks of Section 3.1, highway or plain, of any depth.

    A plain layer to `width`, then `depth - 1` highway (or plain) layers as one scan, then the output layer.
    Maps (batch, ...) to logits (batch, num_classes); images are flattened.

    Parameters: `input/h`, `output`, and `layers`, which holds all layers' weights stacked: `kernel`
    (depth - 1, width, 2 * width) and `bias` (depth - 1, 2 * width) with H's columns before T's; 3 * width
    with an independent carry gate, whose columns come last; width for plain layers. `layer_params` hands
    them out layer by layer as `h`, `t` and `c`.

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
      carry: "coupled" or "independent" carry gates, as in `HighwayDense`. Plain networks ignore it.
      dtype: of the computation; the inputs' and parameters' promoted dtype by default.
      param_dtype: of the parameters.

    Raises:
      ValueError: for a depth below 2, a width or class count below 1, an unknown block, activation or carry.
    """

    depth: int = 10
    width: int = 50
    num_classes: int = 10
    block: str = "highway"
    activation: Activation = "relu"
    transform_bias: float | jax.Array = -1.0
    carry: str = "coupled"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for name, least in ("depth", 2), ("width", 1), ("num_classes", 1):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name, allowed in ("block", BLOCKS), ("carry", CARRIES):
            if getattr(self, name) not in allowed:
                options = ", ".join(map(repr, allowed))
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {options}")
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.reshape(x.shape[0], -1)
        x = PlainDense(self.width, self.activation, name="input", **dtypes)(x)
        biases: list[Any] = [0.0]
        if self.block == "highway":
            biases += [self.transform_bias] + [-self.transform_bias] * (self.carry == "independent")
        x = _Stack(self.depth - 1, self.activation, biases, name="layers", **dtypes)(x)
        return nn.Dense(self.num_classes, kernel_init=normalized(self.activation), name="output", **dtypes)(x)


class _Stack(nn.Module):
    """`length` layers with an affine map for each of `biases` side by side: H's, then T's, then C's."""

    length: int
    activation: Activation
    biases: Sequence[float | jax.Array]
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, parts = x.shape[-1], len(self.biases)

        def bias_init(key, shape, dtype):
            return jnp.concatenate([jnp.full((self.length, width), b, dtype) for b in self.biases], axis=-1)

        kernel_init = layerwise(column_blocks(normalized(self.activation), parts))
        kernel = self.param("kernel", kernel_init, (self.length, width, parts * width), self.param_dtype)
        bias = self.param("bias", bias_init, (self.length, parts * width), self.param_dtype)
        args = *promote_dtype(x, kernel, bias, dtype=self.dtype), self.activation
        apply, states = (plain_stack, plain_states) if parts == 1 else (highway_stack, highway_states)
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            for name, value in states(*args).items():
                self.sow("intermediates", name, value)
        return apply(*args)


def layer_params(params: Any) -> dict[str, dict[str, jax.Array]]:
    """Hand out an MLP's stacked weights as single layers' own parameters.

    Args:
      params: the `params` collection of an `MLP`.

    Returns:
      `{"h": {"kernel", "bias"}, "t": {...}}` (no `t` for a plain network, also `c` with independent carry
      gates), each leaf with a leading layer axis; index it to get the parameters of one `HighwayDense` or `PlainDense`.
    """
    kernel, bias = params["layers"]["kernel"], params["layers"]["bias"]
    width = kernel.shape[-2]
    parts = kernel.shape[-1] // width
    kernels, biases = jnp.split(kernel, parts, axis=-1), jnp.split(bias, parts, axis=-1)
    return {name: {"kernel": k, "bias": b} for name, k, b in zip("htc"[:parts], kernels, biases, strict=True)}
