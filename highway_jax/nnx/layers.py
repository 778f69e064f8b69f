"""Layers for Flax NNX: plain and highway, dense and convolutional, a stack, and a highway layer around any module.

```python
from flax import nnx
from highway_jax.nnx import HighwayDense

layer = HighwayDense(50, transform_bias=-2.0, rngs=nnx.Rngs(0))
```

The layers compute the same as those for Linen (`highway_jax.linen`), with the same initial values and the same names
and shapes of parameters. `nnx.update(layer, params)` accepts the parameters of a Linen layer, and layers stacked with
`nnx.vmap` accept those of an `MLP` from `linen.layer_params`.

`nnx.capture(model, nnx.Intermediate)(x)` returns the output and the inner states that the layers sow: `transform_gate`,
`carry_gate`, `block_state` and `block_output`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer, PaddingLike

from highway_jax.functional.activations import Activation, TracedActivation, activate
from highway_jax.functional.convolution import centered, fused_highway, implemented, window
from highway_jax.functional.initializers import constant, normalized
from highway_jax.functional.ops import resize
from highway_jax.linen.layers import CARRIES, Flagged, Gated, bias_of, branch, drop, mixed, mixed_of, states_of
from highway_jax.linen.stack import StackGates, applied, initial
from highway_jax.stack.kinds import Kind, named


class _Plain(nnx.Module):
    def __init__(self, affine: Callable[[Any], nnx.Module], activation: Activation):
        self.h = affine(0.0)
        self.activation = _attribute(activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x."""
        return _sown(self, {"block_output": activate(self.h(x), self.activation)})


class PlainDense(_Plain):
    """A plain fully connected layer, y = H(x): an affine map and an activation (Eq. 1).

    It maps `(..., in_features)` to `(..., out_features)`. Its parameters are `h/kernel` `(in_features, out_features)`
    and `h/bias` `(out_features,)`.

    Args:
      in_features: the size of the last axis of the input.
      out_features: the number of units.
      activation: "relu", "tanh" or a function.
      kernel_init: the initializer of the kernel; by default, the normalized one of the activation.
      dtype: the dtype of the computation; by default, the promoted dtype of input and parameters.
      param_dtype: the dtype of the parameters.
      rngs: the random streams for the initial weights.

    Raises:
      ValueError: if the activation is unknown.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Activation = "relu",
        kernel_init: Initializer | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = _options(activation, kernel_init, dtype, param_dtype, rngs)
        super().__init__(
            lambda bias: nnx.Linear(in_features, out_features, bias_init=constant(bias), **options), activation
        )


class PlainConv(_Plain):
    """A plain convolutional layer, y = H(x) (Eq. 1).

    It maps `(batch, *spatial, in_features)` to `(batch, *spatial', out_features)`. Its parameters are `h/kernel`
    `(*kernel_size, in_features, out_features)` and `h/bias` `(out_features,)`.

    Args:
      in_features: the number of channels of the input.
      out_features: the number of feature maps.
      kernel_size: the size of the receptive field, one number per spatial dimension.
      strides: the stride of the windows in every spatial dimension.
      padding: as in `flax.nnx.Conv`.
      activation: as in `PlainDense`.
      kernel_init: as in `PlainDense`.
      dtype: as in `PlainDense`.
      param_dtype: as in `PlainDense`.
      implementation: "xla", or "fused" for this library's CPU kernels where they apply (see
        `functional.convolution.conv`).
      rngs: as in `PlainDense`.

    Raises:
      ValueError: if the activation or the implementation is unknown, or the kernel size is invalid.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int] = (3, 3),
        strides: int = 1,
        *,
        padding: PaddingLike = "SAME",
        activation: Activation = "relu",
        kernel_init: Initializer | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        implementation: str = "xla",
        rngs: nnx.Rngs,
    ):
        options = _options(activation, kernel_init, dtype, param_dtype, rngs)
        options |= {"padding": padding, "conv_general_dilated": implemented(implementation)}
        size = window(kernel_size)
        super().__init__(
            lambda bias: nnx.Conv(in_features, out_features, size, strides, bias_init=constant(bias), **options),
            activation,
        )


class _Highway(Gated, nnx.Module):
    strides = 1

    def __init__(self, affine: Callable[[Any], nnx.Module], activation: Activation, transform_bias: Any, carry: str):
        if carry not in CARRIES:
            raise ValueError(f"carry is {carry!r}; it must be {' or '.join(map(repr, CARRIES))}")
        self.h = affine(0.0)
        self.t = affine(transform_bias)
        self.c = affine(-transform_bias) if carry == "independent" else None
        self.activation = _attribute(activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x."""
        h, t = activate(self.h(x), self.activation), jax.nn.sigmoid(self.t(x))
        c = None if self.c is None else jax.nn.sigmoid(self.c(x))
        return _sown(self, mixed(resize(x, h.shape[-1], self.strides), h, t, c))


class HighwayDense(_Highway):
    """A fully connected highway layer, y = H(x) T(x) + x C(x) (Eq. 2 and 3).

    It maps `(..., in_features)` to `(..., out_features)`. Its parameters are under `h` and `t` (and `c`), each with
    `kernel` `(in_features, out_features)` and `bias` `(out_features,)`.

    Args:
      in_features: the size of the last axis of the input.
      out_features: the number of units, by default that of the input. If they differ, x is zero-padded or sub-sampled
        (see `functional.resize`).
      activation: the nonlinearity of H: "relu", "tanh" or a function.
      transform_bias: the initial bias of the transform gate (Section 2.2); may be traced. A negative bias makes the
        layer start by carrying its input. An independent carry gate starts at the opposite bias.
      carry: "coupled" for C = 1 - T (Eq. 3), or "independent" for a carry gate with its own weights (Eq. 2).
      kernel_init: as in `PlainDense`, for the kernels of H, T and C.
      dtype: as in `PlainDense`.
      param_dtype: as in `PlainDense`.
      rngs: as in `PlainDense`.

    Raises:
      ValueError: if the activation or the carry is unknown.

    Example:
      ```python
      layer = HighwayDense(50, transform_bias=-2.0, rngs=nnx.Rngs(0))
      ```
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        activation: Activation = "relu",
        transform_bias: float | jax.Array = -1.0,
        carry: Literal["coupled", "independent"] = "coupled",
        kernel_init: Initializer | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        features = in_features if out_features is None else out_features
        options = _options(activation, kernel_init, dtype, param_dtype, rngs)
        super().__init__(
            lambda bias: nnx.Linear(in_features, features, bias_init=constant(bias), **options),
            activation,
            transform_bias,
            carry,
        )


class HighwayConv(_Highway):
    """A convolutional highway layer, y = H(x) T(x) + x C(x) (Eq. 2 and 3, Section 2.1).

    It maps `(batch, *spatial, in_features)` to `(batch, *spatial', out_features)`. H and T have receptive fields of the
    same size, with zero-padding. The parameters are under `h` and `t` (and `c`), each with `kernel`
    `(*kernel_size, in_features, out_features)` and `bias` `(out_features,)`.

    Args:
      in_features: the number of channels of the input.
      out_features: the number of feature maps, by default that of the input. If they differ, x is zero-padded or
        sub-sampled (see `functional.resize`).
      kernel_size: the size of the receptive field, one number per spatial dimension.
      strides: the stride of the receptive fields in every spatial dimension. Each receptive field is centered on the
        pixel that the sub-sampled x keeps.
      activation: as in `HighwayDense`.
      transform_bias: as in `HighwayDense`.
      carry: as in `HighwayDense`.
      kernel_init: as in `HighwayDense`.
      dtype: as in `HighwayDense`.
      param_dtype: as in `HighwayDense`.
      implementation: "xla", or "fused" for this library's CPU kernels where they apply (see `functional.direct`). The
        kernels have no forward mode and no second derivatives, and they do not call the modules `h` and `t`.
      rngs: as in `HighwayDense`.

    Raises:
      ValueError: if the activation, the carry or the implementation is unknown, or the kernel size is invalid.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        kernel_size: Sequence[int] = (3, 3),
        strides: int = 1,
        *,
        activation: Activation = "relu",
        transform_bias: float | jax.Array = -1.0,
        carry: Literal["coupled", "independent"] = "coupled",
        kernel_init: Initializer | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        implementation: str = "xla",
        rngs: nnx.Rngs,
    ):
        features = in_features if out_features is None else out_features
        options = _options(activation, kernel_init, dtype, param_dtype, rngs)
        options |= {"padding": centered(kernel_size), "conv_general_dilated": implemented(implementation)}
        size = window(kernel_size)
        super().__init__(
            lambda bias: nnx.Conv(in_features, features, size, strides, bias_init=constant(bias), **options),
            activation,
            transform_bias,
            carry,
        )
        self.strides, self.implementation, self.dtype = strides, implementation, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x `(batch, *spatial, in_features)`."""
        h: Any = self.h
        t: Any = self.t
        plain = self.c is None and self.strides == 1 and self.dtype is None and type(h) is type(t) is nnx.Conv
        if self.implementation == "fused" and plain and h.in_features == h.out_features:
            states = fused_highway(x, (h.kernel[...], h.bias[...]), (t.kernel[...], t.bias[...]), self.activation)
            if states:
                return _sown(self, states_of(*states))
        return super().__call__(x)


class HighwayStack(StackGates, nnx.Module):
    """A stack of highway layers, or of any other kind of layer: `highway_jax.HighwayStack` for NNX.

    It maps `(..., features)` to the same shape. Its parameters `kernel` and `bias` are those of the Linen module.

    Args:
      features: the size of the last axis of the input.
      layers: the number of layers.
      kind: as in `highway_jax.HighwayStack`.
      activation: as in `highway_jax.HighwayStack`.
      transform_bias: as in `highway_jax.HighwayStack`.
      remat: as in `highway_jax.HighwayStack`.
      implementation: as in `highway_jax.HighwayStack`.
      dtype: as in `highway_jax.HighwayStack`.
      param_dtype: as in `highway_jax.HighwayStack`.
      rngs: the random streams for the initial weights.

    Raises:
      ValueError: if there is less than one layer, the kind or the activation is unknown, or x has a wrong width.

    Example:
      ```python
      stack = HighwayStack(64, 50, transform_bias=-3.0, rngs=nnx.Rngs(0))
      ```
    """

    def __init__(
        self,
        features: int,
        layers: int,
        *,
        kind: str | Kind = "highway",
        activation: Activation = "relu",
        transform_bias: float | jax.Array = -1.0,
        remat: bool = False,
        implementation: str = "xla",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kernel_init, bias_init, shapes = initial(named(kind), layers, features, activation, transform_bias)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shapes[0], param_dtype))
        self.bias = nnx.Param(bias_init(rngs.params(), shapes[1], param_dtype))
        self.kind, self.remat, self.implementation, self.dtype = kind, remat, implementation, dtype
        self.activation, self.transform_bias = _attribute(activation), _attribute(transform_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers to x `(..., features)`."""
        y, found = applied(self, x, self.kernel[...], self.bias[...], hasattr(self, "__captures__"))
        _sow(self, **found)
        return y


class Highway(Flagged, nnx.Module):
    """A highway layer around arbitrary modules, y = H(x) T(x) + x C(x) (Eq. 2 and 3): `highway_jax.Highway` for NNX.

    It maps x of any shape `(..., features)` to the same shape, which H must keep.

    Args:
      features: the size of the last axis of the input.
      h: any module, called with x; its output is the block state.
      t: any module, called with x; the transform gate is sigmoid(t(x) + transform_bias). By default, a linear layer
        that starts like that of `HighwayDense` with relu, with its own bias at `transform_bias`.
      c: any module, called with x, for an independent carry gate sigmoid(c(x) - transform_bias); by default, C = 1 - T.
      transform_bias: the bias of the gates (Section 2.2); may be traced. A negative bias makes the layer start by
        carrying its input.
      rngs: the random streams for the weights of the default T.

    Attributes:
      closed: whether the layer is the identity, for a layer with a custom T or C: None, the initial value, or a bool
        array.

    Raises:
      ValueError: if neither `t` nor `rngs` is given, or the output of H, T or C has another shape than x.

    Example:
      ```python
      attention = nnx.MultiHeadAttention(4, 64, decode=False, rngs=rngs)
      layer = Highway(64, attention, rngs=rngs)  # maps (batch, time, 64)
      ```
    """

    closed: jax.Array | None = None

    def __init__(
        self,
        features: int,
        h: nnx.Module,
        t: nnx.Module | None = None,
        c: nnx.Module | None = None,
        *,
        transform_bias: float | jax.Array = -1.0,
        rngs: nnx.Rngs | None = None,
    ):
        if t is None and rngs is None:
            raise ValueError("rngs is None; it must be given for the weights of T, unless t is given")
        self.h, self.c, self.plain = h, c, t is None
        self.transform_bias = _attribute(transform_bias)
        if t is None:
            options: Any = {"kernel_init": normalized("relu"), "bias_init": constant(transform_bias), "rngs": rngs}
            t = nnx.Linear(features, features, **options)
        self.t = t

    def gate_bias(self, params: Any) -> jax.Array | None:
        """Return the biases of the transform gates including `transform_bias`, or None if they are unknown."""
        bias = bias_of(params, "t")
        return bias if bias is None or self.plain else bias + self.transform_bias

    def closing(self, params: Any, closed: jax.Array) -> Any:
        """Return the biases of default gates, or the attribute `closed` for custom ones (see `close_gates`)."""
        return (Gated if self.plain and self.c is None else Flagged).closing(self, params, closed)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x `(..., features)`."""
        t = self.t(x) if self.plain else self.t(x) + self.transform_bias
        c = None if self.c is None else self.c(x) - self.transform_bias
        return _sown(self, mixed_of(x, self.h(x), t, c, self.closed))


class Skippable(Flagged, nnx.Module):
    """A residual connection y = x + h that can be closed: `highway_jax.Skippable` for NNX.

    Attributes:
      closed: whether it is the identity: None, the initial value, or a bool array that may be traced.

    Raises:
      ValueError: if x and h differ in shape.
    """

    closed: jax.Array | None = None

    def __call__(self, x: jax.Array, h: jax.Array) -> jax.Array:
        """Add the input x and the output h of a branch, which have the same shape."""
        return _sown(self, branch(x, h, self.closed))


class Dropout(nnx.Module):
    """Dropout whose rate may be traced, such as a hyperparameter that differs between runs.

    It otherwise equals `flax.nnx.Dropout`, which does not accept a traced rate. With an ordinary rate, it drops the
    same units.

    Args:
      rate: the probability of dropping a unit, from 0 to 1.
      deterministic: whether to drop nothing, as in `eval` mode; may be given in the call instead.
      rngs: the random streams; it uses the stream `dropout`.

    Raises:
      ValueError: if an ordinary rate is not from 0 to 1. A traced rate is not checked.
    """

    def __init__(self, rate: float | jax.Array, *, deterministic: bool = False, rngs: nnx.Rngs):
        self.rate = nnx.data(rate) if isinstance(rate, jax.Array) else rate
        self.deterministic = deterministic
        self.rngs = rngs["dropout"].fork()

    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """Drop units of x, unless `deterministic`, which defaults to the attribute."""
        if self.deterministic if deterministic is None else deterministic:
            return x
        return drop(self.rngs(), x, self.rate)


def _options(activation: Activation, kernel_init: Initializer | None, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
    kernel_init = kernel_init or normalized(activation)
    return {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}


def _attribute(value: Any) -> Any:
    # Flax treats a traced value as a constant unless it is marked as data.
    value = value.index if isinstance(value, TracedActivation) else value
    return nnx.data(value) if isinstance(value, jax.Array) else value


def _sown(layer: nnx.Module, states: Mapping[str, jax.Array]) -> jax.Array:
    """Sow a layer's inner states and return its output."""
    _sow(layer, **states)
    return states["block_output"]


def _sow(layer: nnx.Module, **states: jax.Array) -> None:
    # Outside of `nnx.capture`, `sow` of some Flax versions would leave the states in the layer.
    if hasattr(layer, "__captures__"):
        for name, value in states.items():
            layer.sow(nnx.Intermediate, name, value)
