"""Single layers for Flax Linen: plain and highway, dense and convolutional, and a highway layer around any module.

Each layer sows its inner states into the `intermediates` collection: `transform_gate`, `carry_gate`, `block_state` and
`block_output`; a plain layer sows only `block_output`.

The layers are ordinary Linen modules for use in any model. `HighwayStack` and `MLP` compute many equal layers as one
scan.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from highway_jax.functional.activations import Activation, activate
from highway_jax.functional.convolution import centered, fused_highway, implemented, window
from highway_jax.functional.initializers import constant, normalized
from highway_jax.functional.ops import highway, resize
from highway_jax.functional.random import bernoulli
from highway_jax.linen.adoption import adopt

CARRIES = ("coupled", "independent")
# The biases that give T = 0 and C = 1 exactly, which make a layer the identity (Eq. 4). Coupled gates need only T's.
CLOSED = {"t": -jnp.inf, "c": jnp.inf}


class PlainDense(nn.Module):
    """A plain fully connected layer, y = H(x): an affine map and an activation (Eq. 1).

    It maps `(..., n)` to `(..., features)`. Its parameters are `h/kernel` `(n, features)` and `h/bias` `(features,)`.

    Attributes:
      features: the number of units.
      activation: "relu", "tanh" or a function.
      kernel_init: the initializer of the kernel; by default, the normalized one of the activation.
      dtype: the dtype of the computation; by default, the promoted dtype of input and parameters.
      param_dtype: the dtype of the parameters.
      dot_general: as in `flax.linen.Dense`.

    Raises:
      ValueError: if the activation is unknown.

    Example:
      ```python
      x = PlainDense(50, activation="tanh")(x)
      ```
    """

    features: int
    activation: Activation = "relu"
    kernel_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    dot_general: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x `(..., n)`."""
        options = _affine_options(self, 0.0)
        return _plain(self, nn.Dense(self.features, name="h", dot_general=self.dot_general, **options)(x))


class PlainConv(nn.Module):
    """A plain convolutional layer, y = H(x) (Eq. 1).

    It maps `(batch, *spatial, channels)` to `(batch, *spatial', features)`. Its parameters are `h/kernel`
    `(*kernel_size, channels, features)` and `h/bias` `(features,)`.

    Attributes:
      features: the number of feature maps.
      kernel_size: the size of the receptive field, one number per spatial dimension.
      padding: as in `flax.linen.Conv`.
      activation: "relu", "tanh" or a function.
      strides: the stride of the windows in every spatial dimension.
      kernel_init: as in `PlainDense`.
      dtype: as in `PlainDense`.
      param_dtype: as in `PlainDense`.
      implementation: "xla", or "fused" for this library's CPU kernels where they apply (see
        `functional.convolution.conv`).

    Raises:
      ValueError: if the activation or the implementation is unknown, the kernel size is invalid, or the input has a
        wrong number of dimensions.

    Example:
      ```python
      x = PlainConv(32, kernel_size=(5, 5))(images)
      ```
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    padding: str | Sequence[tuple[int, int]] = "SAME"
    activation: Activation = "relu"
    strides: int = 1
    kernel_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x `(batch, *spatial, channels)`."""
        _check_images(x, self.kernel_size)
        return _plain(self, _conv(self, self.features, self.padding, "h")(x))


class Gated:
    """The interface between `highway_jax.analysis` and a module with transform gates; here with affine T and C."""

    def gate_bias(self, params: Any) -> jax.Array | None:
        """Return the biases of the transform gates from the module's parameters, or None if they have none."""
        return bias_of(params, "t")

    def closing(self, params: Any, closed: jax.Array) -> Any:
        """Return the parameters to change or add so that T = 0 and C = 1 exactly where `closed`.

        Args:
          params: the parameters of the module.
          closed: a boolean for each layer of the module.

        Raises:
          ValueError: if the layer cannot be closed by its parameters.
        """
        biases = {name: bias for name in CLOSED if (bias := bias_of(params, name)) is not None}
        if "t" not in biases:
            raise ValueError("it has no t/bias")
        return {name: {"bias": jnp.where(closed[..., None], CLOSED[name], b)} for name, b in biases.items()}


class Flagged(Gated):
    """A module without affine gates, which an additional parameter `closed` closes; in NNX, it is an attribute."""

    def closing(self, params: Any, closed: jax.Array) -> Any:
        """Return the parameter `closed` that closes the layer where `closed`."""
        # It is a parameter, since only parameters follow their layer into a scan. Closed layers stay closed.
        return {"closed": closed | params.get("closed", False)}


class HighwayDense(Gated, nn.Module):
    """A fully connected highway layer, y = H(x) T(x) + x C(x) (Eq. 2 and 3).

    It maps `(..., n)` to `(..., n)`, or to `(..., features)` if `features` is given. Its parameters are under `h` and
    `t` (and `c`), each with `kernel` `(n, features)` and `bias` `(features,)`.

    Attributes:
      activation: the nonlinearity of H: "relu", "tanh" or a function.
      transform_bias: the initial bias of the transform gate (Section 2.2); may be traced. A negative bias makes the
        layer start by carrying its input. An independent carry gate starts at the opposite bias.
      carry: "coupled" for C = 1 - T (Eq. 3), or "independent" for a carry gate with its own weights (Eq. 2).
      kernel_init: as in `PlainDense`, for the kernels of H, T and C.
      dtype: as in `PlainDense`.
      param_dtype: as in `PlainDense`.
      features: the number of units, by default that of the input. If they differ, x is zero-padded or sub-sampled (see
        `functional.resize`).

    Raises:
      ValueError: if the activation or the carry is unknown.

    Example:
      ```python
      for _ in range(10):
          x = HighwayDense(transform_bias=-2.0)(x)
      ```
    """

    activation: Activation = "relu"
    transform_bias: float | jax.Array = -1.0
    carry: Literal["coupled", "independent"] = "coupled"
    kernel_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    features: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x `(..., n)`."""
        features = x.shape[-1] if self.features is None else self.features
        return _highway(self, x, resize(x, features), partial(_dense, self, features))


class HighwayConv(Gated, nn.Module):
    """A convolutional highway layer, y = H(x) T(x) + x C(x) (Eq. 2 and 3, Section 2.1).

    It maps `(batch, *spatial, channels)` to the same shape unless `features` or `strides` change it. H and T have
    receptive fields of the same size, with zero-padding. The parameters are under `h` and `t` (and `c`), each with
    `kernel` `(*kernel_size, channels, features)` and `bias` `(features,)`.

    Attributes:
      kernel_size: the size of the receptive field, one number per spatial dimension.
      activation: as in `HighwayDense`.
      transform_bias: as in `HighwayDense`.
      carry: as in `HighwayDense`.
      kernel_init: as in `HighwayDense`.
      dtype: as in `HighwayDense`.
      param_dtype: as in `HighwayDense`.
      features: the number of feature maps, by default that of the input. If they differ, x is zero-padded or
        sub-sampled (see `functional.resize`).
      strides: the stride of the receptive fields in every spatial dimension. Each receptive field is centered on the
        pixel that the sub-sampled x keeps.
      implementation: "xla", or "fused" for this library's CPU kernels where they apply (see `functional.direct`). The
        kernels have no forward mode and no second derivatives. They do not call the modules of H and T, so
        `capture_intermediates` and `nn.intercept_methods` do not see these.

    Raises:
      ValueError: if the activation, the carry or the implementation is unknown, the kernel size is invalid, or the
        input has a wrong number of dimensions.

    Example:
      ```python
      x = HighwayConv(transform_bias=-2.0)(images)  # 3 x 3, and as many feature maps as channels
      ```
    """

    kernel_size: Sequence[int] = (3, 3)
    activation: Activation = "relu"
    transform_bias: float | jax.Array = -1.0
    carry: Literal["coupled", "independent"] = "coupled"
    kernel_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    features: int | None = None
    strides: int = 1
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x `(batch, *spatial, channels)`."""
        _check_images(x, self.kernel_size)
        features = x.shape[-1] if self.features is None else self.features
        if self.implementation == "fused" and self.carry == "coupled" and (features, self.strides) == (x.shape[-1], 1):
            h, t = _known(self, "h"), _known(self, "t")
            if h and t and (states := fused_highway(x, h, t, self.activation)):
                return _sown(self, states_of(*states))
        shortcut = resize(x, features, self.strides)
        return _highway(self, x, shortcut, partial(_conv, self, features, centered(self.kernel_size)))


class Highway(Flagged, nn.Module):
    """A highway layer around arbitrary modules, y = H(x) T(x) + x C(x) (Eq. 2 and 3).

    It maps x of any shape `(..., n)` to the same shape, which H must keep.

    The variables of the modules are under `h`, `t` and `c`, wherever the layer is built. A module that is used in
    several places has its variables under the last layer that receives it, or where it is first called if that is
    earlier.

    Attributes:
      h: any module, called with x; its output is the block state.
      t: any module, called with x; the transform gate is sigmoid(t(x) + transform_bias), so a module whose output
        starts near zero starts biased towards carrying. By default, a dense layer that starts like that of
        `HighwayDense`: with He's normal kernel, and its own bias at `transform_bias`.
      c: any module, called with x, for an independent carry gate sigmoid(c(x) - transform_bias); by default, C = 1 - T.
      transform_bias: the bias of the gates (Section 2.2); may be traced. A negative bias makes the layer start by
        carrying its input.

    Raises:
      ValueError: if the output of H, T or C has another shape than x.

    Example:
      ```python
      x = Highway(nn.MultiHeadDotProductAttention(num_heads=4))(x)  # (batch, time, n)
      x = Highway(nn.RNN(nn.GRUCell(64)), transform_bias=-2.0)(x)  # (batch, time, 64)
      ```
    """

    h: nn.Module
    t: nn.Module | None = None
    c: nn.Module | None = None
    transform_bias: float | jax.Array = -1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope is not None:
            adopt(self, *"htc")

    def gate_bias(self, params: Any) -> jax.Array | None:
        """Return the biases of the transform gates including `transform_bias`, or None if they are unknown."""
        bias = bias_of(params, "t")
        if self.t is None or bias is None:
            return bias
        traced = isinstance(self.transform_bias, jax.core.Tracer)  # traced in a parent's method, so unknown here
        return None if traced else bias + self.transform_bias

    def closing(self, params: Any, closed: jax.Array) -> Any:
        """Return the biases of default gates, or the parameter `closed` for custom ones (see `close_gates`)."""
        rule = Gated if self.t is None and self.c is None else Flagged
        return rule.closing(self, params, closed)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x `(..., n)`."""
        if self.t is None:
            bias_init = constant(self.transform_bias)
            t = nn.Dense(x.shape[-1], kernel_init=normalized("relu"), bias_init=bias_init, name="t")(x)
        else:
            t = self.t(x) + self.transform_bias
        c = None if self.c is None else self.c(x) - self.transform_bias
        return _sown(self, mixed_of(x, self.h(x), t, c, self.get_variable("params", "closed")))


class Skippable(Flagged, nn.Module):
    """A residual connection y = x + h that can be closed, for lesions of networks without gates.

    `highway_jax.analysis` treats it as a layer with open gates, T = C = 1. If it is closed, it is the identity. It has
    no parameters.

    Raises:
      ValueError: if x and h differ in shape.

    Example:
      ```python
      x = Skippable()(x, nn.Dense(64)(nn.relu(nn.LayerNorm()(x))))
      ```
    """

    @nn.compact
    def __call__(self, x: jax.Array, h: jax.Array) -> jax.Array:
        """Add the input x and the output h of a branch, which have the same shape."""
        return _sown(self, branch(x, h, self.get_variable("params", "closed")))


def branch(x: jax.Array, h: jax.Array, closed: jax.Array | None) -> dict[str, jax.Array]:
    """The inner states of a `Skippable`, which is open if `closed` is None."""
    if x.shape != h.shape:
        raise ValueError(f"x is of shape {x.shape} and h of shape {h.shape}; they must have the same shape")
    t, y = jnp.ones_like(h), x + h
    if closed is not None:
        t, y = jnp.where(closed, 0, t), jnp.where(closed, x, y)
    return {"block_state": h, "transform_gate": t, "carry_gate": jnp.ones_like(x), "block_output": y}


class Dropout(nn.Module):
    """Dropout whose rate may be traced, such as a hyperparameter that differs between runs.

    It otherwise equals `flax.linen.Dropout`, which does not accept a traced rate. With an ordinary rate, it drops the
    same units.

    Attributes:
      rate: the probability of dropping a unit, from 0 to 1.
      deterministic: whether to drop nothing; may be given in the call instead.

    Raises:
      ValueError: if an ordinary rate is not from 0 to 1. A traced rate is not checked.

    Example:
      ```python
      x = Dropout(self.rate, deterministic=not train)(x)  # `self.rate` may be a hyperparameter such as hp["rate"]
      ```
    """

    rate: float | jax.Array
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """Drop units of x; `deterministic` must be given here or as an attribute."""
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return x
        return drop(self.make_rng("dropout"), x, self.rate)


def drop(key: jax.Array, x: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Zero each unit of `x` with probability `rate`, and scale the others to keep the mean.

    Raises:
      ValueError: if an ordinary rate is not from 0 to 1. A traced rate is not checked.
    """
    if isinstance(rate, int | float) and not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}; it must be from 0 to 1")
    keep = jnp.asarray(1 - rate, x.dtype)
    scaled = x / jnp.where(keep > 0, keep, 1)  # avoids a gradient of infinity times zero
    return jnp.where(bernoulli(key, jnp.asarray(1 - rate, jnp.result_type(rate, float)), x.shape), scaled, 0)


def bias_of(params: Any, name: str) -> jax.Array | None:
    """The bias of a module's affine map, or None if it has none."""
    affine = params.get(name)
    bias = affine.get("bias") if isinstance(affine, Mapping) else None
    return None if isinstance(bias, Mapping) else bias


def _plain(layer: Any, z: jax.Array) -> jax.Array:
    return _sown(layer, {"block_output": activate(z, layer.activation)})


def _highway(layer: Any, x: jax.Array, shortcut: jax.Array, affine: Callable[[str, Any], nn.Module]) -> jax.Array:
    if layer.carry not in CARRIES:
        raise ValueError(f"carry is {layer.carry!r}; it must be {' or '.join(map(repr, CARRIES))}")
    h = activate(affine("h", 0.0)(x), layer.activation)
    t = jax.nn.sigmoid(affine("t", layer.transform_bias)(x))
    c = jax.nn.sigmoid(affine("c", -layer.transform_bias)(x)) if layer.carry == "independent" else None
    return _sown(layer, mixed(shortcut, h, t, c))


def _sown(layer: Any, states: Mapping[str, jax.Array]) -> jax.Array:
    """Sow a layer's inner states and return its output."""
    for name, value in states.items():
        layer.sow("intermediates", name, value)
    return states["block_output"]


def mixed(
    shortcut: jax.Array, h: jax.Array, t: jax.Array, c: jax.Array | None, closed: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The inner states of a highway layer (Eq. 2 and 3), which is the identity where `closed`."""
    if closed is not None:
        t, c = jnp.where(closed, 0, t), None if c is None else jnp.where(closed, 1, c)
    return states_of(highway(shortcut.astype(h.dtype), h, t, c), h, t, c)


def states_of(y: jax.Array, h: jax.Array, t: jax.Array, c: jax.Array | None = None) -> dict[str, jax.Array]:
    """The inner states of a highway layer by name."""
    return {"block_state": h, "transform_gate": t, "carry_gate": 1 - t if c is None else c, "block_output": y}


def mixed_of(
    x: jax.Array, h: jax.Array, t: jax.Array, c: jax.Array | None, closed: jax.Array | None
) -> dict[str, jax.Array]:
    """The inner states of a `Highway`, from the output of H and the pre-activations of the gates.

    Raises:
      ValueError: if one of them has another shape than x.
    """
    for name, state in {"h": h, "t": t, "c": c}.items():
        if state is not None and state.shape != x.shape:
            raise ValueError(f"{name} must keep its input's shape {x.shape}, but returns {state.shape}")
    return mixed(x, h, jax.nn.sigmoid(t), None if c is None else jax.nn.sigmoid(c), closed)


def _dense(layer: Any, features: int, name: str, bias: Any = 0.0) -> nn.Dense:
    return nn.Dense(features, name=name, **_affine_options(layer, bias))


def _conv(layer: Any, features: int, padding: Any, name: str, bias: Any = 0.0) -> nn.Conv:
    size, run, options = window(layer.kernel_size), implemented(layer.implementation), _affine_options(layer, bias)
    return nn.Conv(features, size, layer.strides, padding, conv_general_dilated=run, name=name, **options)


def _known(layer: nn.Module, name: str) -> tuple[jax.Array, jax.Array] | None:
    """The kernel and bias of an affine map, if they exist and its module need not be called; otherwise None."""
    params: Mapping[str, Any] = layer.get_variable("params", name) or {}
    kernel, bias = params.get("kernel"), params.get("bias")
    if layer.dtype is not None or not isinstance(kernel, jax.Array) or not isinstance(bias, jax.Array):
        return None
    return (kernel, bias) if kernel.shape[:-2] == window(layer.kernel_size) else None


def _affine_options(layer: Any, bias: Any) -> dict[str, Any]:
    return {
        "kernel_init": layer.kernel_init or normalized(layer.activation),
        "bias_init": constant(bias),
        "dtype": layer.dtype,
        "param_dtype": layer.param_dtype,
    }


def _check_images(x: jax.Array, kernel_size: Sequence[int]) -> None:
    size = window(kernel_size)
    if x.ndim != len(size) + 2:
        raise ValueError(
            f"a convolution with kernel_size {size} needs an input of "
            f"{len(size) + 2} dimensions, (batch, *spatial, channels), but got shape {x.shape}"
        )
