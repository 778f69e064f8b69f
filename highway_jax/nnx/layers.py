"""One layer, for Flax NNX: plain and highway, dense and convolutional.

    from flax import nnx
    from highway_jax.nnx import HighwayDense

    layer = HighwayDense(50, transform_bias=-2.0, rngs=nnx.Rngs(0))

Mathematics, initial values, and the parameters' names and shapes are those of the Linen layers
(`highway_jax.linen`): `nnx.update(layer, params)` takes a Linen layer's parameters, and a stack of layers made with
`nnx.vmap` takes an `MLP`'s from `linen.layer_params`.

`nnx.capture(model, nnx.Intermediate)(x)` gives, beside the output, the inner states that the layers sow:
`transform_gate`, `carry_gate`, `block_state` and `block_output`.
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
        return _sown(self, {"block_output": activate(self.h(x), self.activation)})


class PlainDense(_Plain):
    """A plain layer, y = H(x): an affine map and an activation (Eq. 1).

    Maps (..., in_features) to (..., out_features). Parameters: `h/kernel` (in_features, out_features), `h/bias`
    (out_features,).

    Args:
      in_features: size of the input's last axis.
      out_features: number of units.
      activation: "relu", "tanh" or a function.
      kernel_init: initializer of the kernel; the normalized one of the activation by default.
      dtype: of the computation; the inputs' and parameters' promoted dtype by default.
      param_dtype: of the parameters.
      rngs: the source of the initial weights' keys.

    Raises:
      ValueError: for an unknown activation.
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

    Maps (batch, *spatial, in_features) to (batch, *spatial', out_features). Parameters under `h`.

    Args:
      in_features: number of the input's channels.
      out_features: number of feature maps.
      kernel_size: receptive field, one number per spatial dimension.
      strides: of the windows, in every dimension.
      padding: as in `flax.nnx.Conv`.
      activation, kernel_init, dtype, param_dtype, rngs: as in `PlainDense`.
      implementation: "xla", or "fused": this project's kernels where they can (`functional.convolution.conv`).

    Raises:
      ValueError: for an unknown activation or implementation, or an invalid kernel size.
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
        h, t = activate(self.h(x), self.activation), jax.nn.sigmoid(self.t(x))
        c = None if self.c is None else jax.nn.sigmoid(self.c(x))
        return _sown(self, mixed(resize(x, h.shape[-1], self.strides), h, t, c))


class HighwayDense(_Highway):
    """A fully connected highway layer, y = H(x) T(x) + x C(x) (Eq. 2 and 3).

    Maps (..., in_features) to (..., out_features). Parameters live under `h` and `t` (and `c`), each with `kernel`
    (in_features, out_features) and `bias` (out_features,).

    Args:
      in_features: size of the input's last axis.
      out_features: number of units, if not the input's; x is then zero-padded or sub-sampled to it (`ops.resize`).
      activation: H's nonlinearity: "relu", "tanh" or a function.
      transform_bias: initial bias of the transform gate (Section 2.2); negative values carry. An
        independent carry gate starts at the opposite bias, hence open where T is closed.
      carry: "coupled" for C = 1 - T (Eq. 3), "independent" for a gate with its own weights (Eq. 2).
      kernel_init, dtype, param_dtype, rngs: as in `PlainDense`.

    Raises:
      ValueError: for an unknown activation or carry.
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
    """A convolutional highway layer (Eq. 2 and 3, Section 2.1).

    Maps (batch, *spatial, in_features) to (batch, *spatial', out_features); H and T use receptive fields of one size,
    with zero-padding. Parameters live under `h` and `t` (and `c`), each with `kernel` (*kernel_size, in_features,
    out_features) and `bias` (out_features,).

    Args:
      in_features: number of the input's channels.
      out_features: number of feature maps, if not the input's; x is then zero-padded or sub-sampled to it, as by
        `strides` (`ops.resize`).
      kernel_size: receptive field, one number per spatial dimension.
      strides: of the receptive fields, in every dimension; each is centred on what x is sub-sampled to.
      activation, transform_bias, carry: as in `HighwayDense`.
      kernel_init, dtype, param_dtype, rngs: as in `PlainDense`.
      implementation: "xla", or "fused": this project's kernels where they can (`functional.direct`). These have no
        forward mode and no second derivatives, and do not call `h` and `t`.

    Raises:
      ValueError: for an unknown activation, carry or implementation, or an invalid kernel size.
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
        h: Any = self.h
        t: Any = self.t
        plain = self.c is None and self.strides == 1 and self.dtype is None and type(h) is type(t) is nnx.Conv
        if self.implementation == "fused" and plain and h.in_features == h.out_features:
            states = fused_highway(x, (h.kernel[...], h.bias[...]), (t.kernel[...], t.bias[...]), self.activation)
            if states:
                return _sown(self, states_of(*states))
        return super().__call__(x)


class HighwayStack(StackGates, nnx.Module):
    """Highway layers, or layers of any other kind, one after another: `highway_jax.HighwayStack`, for NNX.

    Maps (..., features) to the same shape. Parameters `kernel` and `bias` as there.

    Args:
      features: size of the input's last axis, first, as in all layers of NNX.
      layers: how many.
      kind, activation, transform_bias, remat, implementation, dtype, param_dtype: as there.
      rngs: the source of the initial weights' keys.

    Raises:
      ValueError: for less than one layer, an unknown kind or activation, and an x of another width.
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
        y, found = applied(self, x, self.kernel[...], self.bias[...], hasattr(self, "__captures__"))
        _sow(self, **found)
        return y


class Highway(Flagged, nnx.Module):
    """A highway layer whose H is any module, y = H(x) T(x) + x C(x) (Eq. 2 and 3): `highway_jax.Highway`, for NNX.

    Maps x of any shape (..., features) to the same shape, which H keeps:

        Highway(64, nnx.MultiHeadAttention(4, 64, decode=False, rngs=rngs), rngs=rngs)  # of (batch, time, 64)

    Args:
      features: size of the input's last axis.
      h: any module, called with x; its output is the block state.
      t: any module, called with x; sigmoid(t(x) + transform_bias) is the transform gate. By default a linear layer,
        which starts as that of `HighwayDense` with relu, and has a bias of its own at `transform_bias`.
      c: likewise, with the opposite bias, an independent carry gate; by default C = 1 - T.
      transform_bias: of the gates (Section 2.2); negative values carry. May be traced.
      rngs: the source of the default T's weights.

    Attributes:
      closed: whether it is the identity, where T or C is one's own; None, as it is made, or a bool array.

    Raises:
      ValueError: without `t` and `rngs`, or if what H, T or C give has another shape than x.
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
            raise ValueError("rngs is None; without t, it must be given for T's weights")
        self.h, self.c, self.plain = h, c, t is None
        self.transform_bias = _attribute(transform_bias)
        if t is None:
            options: Any = {"kernel_init": normalized("relu"), "bias_init": constant(transform_bias), "rngs": rngs}
            t = nnx.Linear(features, features, **options)
        self.t = t

    def gate_bias(self, params: Any) -> jax.Array | None:
        bias = bias_of(params, "t")
        return bias if bias is None or self.plain else bias + self.transform_bias

    def closing(self, params: Any, closed: jax.Array) -> Any:
        return (Gated if self.plain and self.c is None else Flagged).closing(self, params, closed)

    def __call__(self, x: jax.Array) -> jax.Array:
        t = self.t(x) if self.plain else self.t(x) + self.transform_bias
        c = None if self.c is None else self.c(x) - self.transform_bias
        return _sown(self, mixed_of(x, self.h(x), t, c, self.closed))


class Skippable(Flagged, nnx.Module):
    """A residual branch that can be closed, y = x + h: `highway_jax.Skippable`, for NNX.

    Attributes:
      closed: whether it is the identity; None, as it is made, or a bool array that may be traced.

    Raises:
      ValueError: if x and h differ in shape.
    """

    closed: jax.Array | None = None

    def __call__(self, x: jax.Array, h: jax.Array) -> jax.Array:
        return _sown(self, branch(x, h, self.closed))


class Dropout(nnx.Module):
    """Dropout whose rate may be traced, such as a hyperparameter that differs from run to run.

    Otherwise as `flax.nnx.Dropout`, which refuses such a rate; of an ordinary rate it drops the same units.

    Args:
      rate: the probability of dropping a unit, from 0 to 1.
      deterministic: whether to drop nothing, as in `eval` mode; may be given in the call instead.
      rngs: the source of its random keys, the stream `dropout`.
    """

    def __init__(self, rate: float | jax.Array, *, deterministic: bool = False, rngs: nnx.Rngs):
        self.rate = nnx.data(rate) if isinstance(rate, jax.Array) else rate
        self.deterministic = deterministic
        self.rngs = rngs["dropout"].fork()

    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        if self.deterministic if deterministic is None else deterministic:
            return x
        return drop(self.rngs(), x, self.rate)


def _options(activation: Activation, kernel_init: Initializer | None, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
    kernel_init = kernel_init or normalized(activation)
    return {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}


def _attribute(value: Any) -> Any:
    # Flax takes a traced value for a constant unless it is told.
    value = value.index if isinstance(value, TracedActivation) else value
    return nnx.data(value) if isinstance(value, jax.Array) else value


def _sown(layer: nnx.Module, states: Mapping[str, jax.Array]) -> jax.Array:
    """A layer's output, its inner states sown."""
    _sow(layer, **states)
    return states["block_output"]


def _sow(layer: nnx.Module, **states: jax.Array) -> None:
    # Outside `nnx.capture` some versions' `sow` would leave the states behind in the layer.
    if hasattr(layer, "__captures__"):
        for name, value in states.items():
            layer.sow(nnx.Intermediate, name, value)
