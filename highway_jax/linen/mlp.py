"""The fully connected networks of Section 3.1."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from highway_jax.functional.activations import Activation
from highway_jax.functional.initializers import normalized
from highway_jax.linen.layers import PlainDense
from highway_jax.linen.stack import HighwayStack
from highway_jax.stack import fused
from highway_jax.stack.kinds import Kind


class MLP(nn.Module):
    """The fully connected networks of Section 3.1, highway, plain or of any other `Kind`, of any depth.

    A plain layer to `width`, then `depth - 1` layers of one kind as one scan, then the output layer.
    Maps (batch, ...) to logits (batch, num_classes); images are flattened.

    Parameters: `input/h`, `output`, and `layers`, which holds all layers' weights stacked: `kernel`
    (depth - 1, width, 2 * width) and `bias` (depth - 1, 2 * width) with H's columns before T's; in
    general width for each of the kind's affine maps.
    `layer_params` hands them out layer by layer as `h`, `t` and `c`.

    Every layer's inner states are sown into the `intermediates` collection, each with a leading layer
    axis: `model.apply(variables, x, mutable="intermediates")` gives `transform_gate`, `carry_gate`,
    `block_state` and `block_output` under `layers` (`block_output` alone in a plain network); of another kind,
    all that its cell returns.

    There is no forward mode (`jax.jvp`); there are second derivatives, but with "xla" alone (`highway_jax.stack`).

    Attributes:
      depth: layers as the paper counts them: depth 10 is the first plain layer and nine further ones.
      width: blocks (highway) or units (plain) per layer; the paper has 50 and 71, of about as many parameters.
      num_classes: size of the output.
      kind: of the layers: "highway"; "independent", with carry gates that have weights of their own (Eq. 2); "plain",
        "residual", "fixed", "lstm" (`highway_jax.stack.kinds` has their equations); or a `Kind`.
      activation: "relu", "tanh", a function, or a traced index into `highway_jax.functional.activations.ACTIVATIONS`.
      transform_bias: initial bias of the transform gates; may be traced. Other kinds make of it what they say, plain
        and residual ones nothing.
      dtype: of the computation; the inputs' and parameters' promoted dtype by default.
      param_dtype: of the parameters and the logits.
      remat: keep less for the backward pass and compute the layers again there: memory for activations grows with
        sqrt(depth) instead of depth, and a step takes up to a third longer.
      implementation: "xla", or "fused", two to three times as fast to train on a CPU or NVIDIA GPU where layers are
        narrow: all of them as one kernel of our own, which the machine's compiler builds (`highway_jax.stack.fused`;
        `stack` has its limits); on a CPU it also multiplies for the first layer. It is for highway and plain networks
        of relu or tanh in float32; other accelerators, and GPUs that cannot build it, use XLA all the same.

    Raises:
      ValueError: for a depth below 2, a width or class count below 1, an unknown kind, activation or
        implementation, and where "fused" cannot compute the network.
      fused.Unavailable: for the gradients of "fused" on a CPU that cannot build it.
    """

    depth: int = 10
    width: int = 50
    num_classes: int = 10
    kind: str | Kind = "highway"
    activation: Activation = "relu"
    transform_bias: float | jax.Array = -1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    remat: bool = False
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for name, least in ("depth", 2), ("width", 1), ("num_classes", 1):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        product = fused.dot_general if self.implementation == "fused" else None
        x = x.reshape(x.shape[0], -1)
        x = PlainDense(self.width, self.activation, dot_general=product, name="input", **dtypes)(x)
        layers = HighwayStack(
            self.depth - 1,
            self.kind,
            self.activation,
            self.transform_bias,
            self.remat,
            self.implementation,
            name="layers",
            **dtypes,
        )
        x = layers(x)
        x = nn.Dense(self.num_classes, kernel_init=normalized(self.activation), name="output", **dtypes)(x)
        return x.astype(self.param_dtype)


def layer_params(params: Any, names: Sequence[str] = "htc") -> dict[str, dict[str, jax.Array]]:
    """Hand out an MLP's stacked weights as single layers' own parameters.

    Args:
      params: the `params` collection of an `MLP`.
      names: of the kind's affine maps, in order; those of highway and plain layers by default.

    Returns:
      `{"h": {"kernel", "bias"}, "t": {...}}` (no `t` for a plain network, also `c` of the kind
      "independent"), each leaf with a leading layer axis; index it to get the parameters of one `HighwayDense` or
      `PlainDense`.
    """
    kernel, bias = params["layers"]["kernel"], params["layers"]["bias"]
    width = kernel.shape[-2]
    parts = kernel.shape[-1] // width
    kernels, biases = jnp.split(kernel, parts, axis=-1), jnp.split(bias, parts, axis=-1)
    return {name: {"kernel": k, "bias": b} for name, k, b in zip(names[:parts], kernels, biases, strict=True)}
