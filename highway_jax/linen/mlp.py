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
    """A fully connected network of Section 3.1 of any depth: highway, plain, or of any other `Kind`.

    A plain layer maps the input to `width` units. It is followed by `depth - 1` layers of one kind, computed as one
    scan, and by the output layer. The network flattens its input `(batch, ...)` and returns logits
    `(batch, num_classes)`.

    Its parameters are under `input/h`, `layers` and `output`. Those of `layers` are stacked: `kernel`
    `(depth - 1, width, 2 * width)` and `bias` `(depth - 1, 2 * width)`, with the columns of H before those of T. Other
    kinds have `width` columns for each of their affine maps. `layer_params` splits them into `h`, `t` and `c`.

    The inner states of all layers are sown into the `intermediates` collection, each with a leading layer axis. With
    `model.apply(variables, x, mutable="intermediates")`, `layers` has `transform_gate`, `carry_gate`, `block_state` and
    `block_output`. A plain network has only `block_output`; another kind has everything that its cell returns.

    Forward-mode differentiation (`jax.jvp`) is not supported. Second derivatives are supported by "xla" only.

    Attributes:
      depth: the number of layers as the paper counts them: depth 10 is the first plain layer and nine more layers.
      width: the number of blocks (highway) or units (plain) per layer. The paper uses 50 and 71, which give about the
        same number of parameters.
      num_classes: the number of classes.
      kind: the kind of layer: "highway"; "independent" for carry gates with their own weights (Eq. 2); "plain",
        "residual", "fixed" or "lstm" (see `highway_jax.stack.kinds` for their equations); or a `Kind`.
      activation: "relu", "tanh", a function, or a traced index into `highway_jax.functional.activations.ACTIVATIONS`.
      transform_bias: the initial bias of the transform gates; may be traced. Plain and residual layers ignore it; the
        other kinds document their use of it.
      dtype: the dtype of the computation; by default, the promoted dtype of input and parameters.
      param_dtype: the dtype of the parameters and the logits.
      remat: whether to recompute layers in the backward pass. The memory for activations then grows with sqrt(depth)
        instead of depth, and a step takes one to two thirds longer.
      implementation: "xla", or "fused" to compute all layers in one kernel, which trains narrow networks about
        twice as fast on a CPU and three times as fast on an NVIDIA GPU. On a CPU, it also computes the product of the
        first layer. "fused" is for highway and plain networks with relu or tanh in float32 (see
        `highway_jax.stack.stack` for its limits). The machine's compiler builds the kernel on first use (see
        `highway_jax.stack.fused`). Other accelerators, and GPUs for which the kernel cannot be built, use XLA.

    Raises:
      ValueError: if the depth is below 2, the width or the number of classes is below 1, the kind, the activation or
        the implementation is unknown, or "fused" cannot compute the network.
      fused.Unavailable: if "fused" computes gradients on a CPU for which the kernel cannot be built.

    Example:
      ```python
      model = MLP(depth=50, transform_bias=-4.0)
      variables = model.init(jax.random.key(0), images)
      logits = model.apply(variables, images)
      ```
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
        """Return the logits `(batch, num_classes)` for x `(batch, ...)`."""
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
    """Split the stacked weights of an `MLP` into the parameters of its layers.

    Args:
      params: the `params` collection of an `MLP`.
      names: the names of the affine maps of its kind, in order; by default, those of highway and plain layers.

    Returns:
      `{"h": {"kernel": ..., "bias": ...}, "t": {...}}`, without `t` for a plain network and with `c` for the kind
        "independent". Each leaf has a leading layer axis.

    Example:
      The parameters of one `HighwayDense`:

      ```python
      third = jax.tree.map(lambda leaf: leaf[2], layer_params(variables["params"]))
      ```
    """
    kernel, bias = params["layers"]["kernel"], params["layers"]["bias"]
    width = kernel.shape[-2]
    parts = kernel.shape[-1] // width
    kernels, biases = jnp.split(kernel, parts, axis=-1), jnp.split(bias, parts, axis=-1)
    return {name: {"kernel": k, "bias": b} for name, k, b in zip(names[:parts], kernels, biases, strict=True)}
