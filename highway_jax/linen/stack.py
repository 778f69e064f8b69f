"""A stack of equal layers as one module."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype

from highway_jax.functional.activations import Activation
from highway_jax.functional.initializers import column_blocks, layerwise, normalized
from highway_jax.linen.layers import CLOSED, Gated
from highway_jax.stack import stack, states
from highway_jax.stack.kinds import Kind, named


class StackGates(Gated):
    """The interface between `highway_jax.analysis` and a `HighwayStack` of Linen or NNX.

    Attributes:
      kind: the kind of layer.
    """

    kind: str | Kind

    def gate_bias(self, params: Any) -> jax.Array | None:
        """Return the biases of the transform gates `(layers, width)`, or None if the kind has none."""
        return self._biases(params).get("t")

    def closing(self, params: Any, closed: jax.Array) -> Any:
        """Return the stack's `bias` with T = 0 and C = 1 exactly where `closed` `(layers,)`."""
        biases = self._biases(params)
        if "t" not in biases:
            raise ValueError(f"its kind's affine maps are {', '.join(biases)}, and none is named t")
        biases |= {n: jnp.where(closed[..., None], CLOSED[n], b) for n, b in biases.items() if n in CLOSED}
        return {"bias": jnp.concatenate(list(biases.values()), axis=-1)}

    def _biases(self, params: Any) -> dict[str, jax.Array]:
        names = named(self.kind).biases(0.0)
        return dict(zip(names, jnp.split(params["bias"], len(names), axis=-1), strict=True))


class HighwayStack(StackGates, nn.Module):
    """A stack of highway layers, or of any other kind of layer, as one scan with an explicit backward pass.

    It maps `(..., width)` to the same shape. Its parameters are `kernel` `(layers, width, parts * width)` and `bias`
    `(layers, parts * width)`, with the columns of the kind's affine maps side by side: first H, then T, then an
    independent C.

    The inner states of all layers are sown into the `intermediates` collection, each with a leading layer axis:
    `transform_gate`, `carry_gate`, `block_state` and `block_output`; another kind has everything that its cell returns.

    Forward-mode differentiation (`jax.jvp`) is not supported. Second derivatives are supported by "xla" only.

    Attributes:
      layers: the number of layers.
      kind: the kind of layer: "highway", "independent", "plain", "residual", "fixed" or "lstm" (see
        `highway_jax.stack.kinds` for their equations), or a `Kind`.
      activation: "relu", "tanh", a function, or a traced index.
      transform_bias: the initial bias of the transform gates (Section 2.2); may be traced. A negative bias makes the
        layers start by carrying their input.
      remat: as in `MLP`.
      implementation: as in `MLP`.
      dtype: as in `MLP`.
      param_dtype: as in `MLP`.

    Raises:
      ValueError: if there is less than one layer, the kind, the activation or the implementation is unknown, or
        "fused" cannot compute the stack.

    Example:
      ```python
      x = HighwayStack(50, transform_bias=-3.0)(nn.relu(nn.Dense(64)(x)))
      ```
    """

    layers: int
    kind: str | Kind = "highway"
    activation: Activation = "relu"
    transform_bias: float | jax.Array = -1.0
    remat: bool = False
    implementation: str = "xla"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers to x `(..., width)`."""
        kind = named(self.kind)
        kernel_init, bias_init, shapes = initial(kind, self.layers, x.shape[-1], self.activation, self.transform_bias)
        kernel = self.param("kernel", kernel_init, shapes[0], self.param_dtype)
        bias = self.param("bias", bias_init, shapes[1], self.param_dtype)
        looked_into = self.is_mutable_collection("intermediates") and not self.is_initializing()
        y, found = applied(self, x, kernel, bias, looked_into)
        for name, value in found.items():
            self.sow("intermediates", name, value)
        return y


def initial(kind: Kind, layers: int, width: int, activation: Activation, transform_bias: Any) -> tuple[Any, Any, Any]:
    """The initializers and the shapes of a stack's kernel and bias.

    Raises:
      ValueError: if there is less than one layer.
    """
    if layers < 1:
        raise ValueError(f"layers is {layers}; it must be at least 1")
    biases = kind.biases(transform_bias).values()
    parts = len(biases)

    def bias_init(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
        return jnp.concatenate([jnp.full((layers, width), b, dtype) for b in biases], axis=-1)

    kernel_init = layerwise(column_blocks(normalized(activation), parts))
    return kernel_init, bias_init, ((layers, width, parts * width), (layers, parts * width))


def applied(
    options: Any, x: jax.Array, kernel: jax.Array, bias: jax.Array, looked_into: bool
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Apply a stack.

    Args:
      options: an object with the attributes of a `HighwayStack` of Linen or NNX.
      x: see `highway_jax.stack.stack`.
      kernel: see `highway_jax.stack.stack`.
      bias: see `highway_jax.stack.stack`.
      looked_into: whether to compute the inner states, from which the output is then taken.

    Returns:
      The output, and the inner states by name; these are empty unless `looked_into`.

    Raises:
      ValueError: if x has a wrong width.
    """
    kind = named(options.kind)
    if x.shape[-1] != kernel.shape[1]:
        raise ValueError(
            f"x is of shape {x.shape}; the stack, whose kernel is {kernel.shape}, is {kernel.shape[1]} wide"
        )
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=options.dtype)
    args = kind, x, kernel, bias, options.activation, options.transform_bias
    if looked_into:
        found = states(*args)
        return found[kind.carries[0]][-1], found
    return stack(*args, options.remat, options.implementation), {}
