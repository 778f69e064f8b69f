"""One layer: plain and highway, dense and convolutional, or around any other module.

Each sows its inner states into the `intermediates` collection: `transform_gate`, `carry_gate`, `block_state` and
`block_output`, a plain layer `block_output` alone.

Each is an ordinary Flax Linen module for use in any model. Whole networks of many equal layers
(`highway_jax.models`) run the same mathematics as one scan instead.
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
# The biases that make T = 0 and C = 1 exactly, and so a layer the identity (Eq. 4); coupled gates need only T's.
CLOSED = {"t": -jnp.inf, "c": jnp.inf}


class PlainDense(nn.Module):
    """A plain layer, y = H(x): an affine map and an activation (Eq. 1).

    Maps (..., n) to (..., features). Parameters: `h/kernel` (n, features), `h/bias` (features,).

    Attributes:
      features: number of units.
      activation: "relu", "tanh" or a function.
      kernel_init: initializer of the kernel; the normalized one of the activation by default.
      dtype: of the computation; the inputs' and parameters' promoted dtype by default.
      param_dtype: of the parameters.
      dot_general: as `flax.linen.Dense` has it.

    Raises:
      ValueError: for an unknown activation.
    """

    features: int
    activation: Activation = "relu"
    kernel_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    dot_general: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = _affine_options(self, 0.0)
        return _plain(self, nn.Dense(self.features, name="h", dot_general=self.dot_general, **options)(x))


class PlainConv(nn.Module):
    """A plain convolutional layer, y = H(x) (Eq. 1).

    Maps (batch, *spatial, channels) to (batch, *spatial', features). Parameters under `h`.

    Attributes:
      features: number of feature maps.
      kernel_size: receptive field, one number per spatial dimension.
      padding: as in `flax.linen.Conv`.
      strides: of the windows, in every dimension.
      activation, kernel_init, dtype, param_dtype: as in `PlainDense`.
      implementation: "xla", or "fused": this project's kernels where they can (`functional.convolution.conv`).

    Raises:
      ValueError: for an unknown activation or implementation, an invalid kernel size, or an input with another number
        of dimensions.
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
        _check_images(x, self.kernel_size)
        return _plain(self, _conv(self, self.features, self.padding, "h")(x))


class Gated:
    """What `highway_jax.analysis` asks of a module with transform gates: here, of one with affine T and C."""

    def gate_bias(self, params: Any) -> jax.Array | None:
        """The transform gates' biases, from the module's parameters; None where they have none."""
        return bias_of(params, "t")

    def closing(self, params: Any, closed: jax.Array) -> Any:
        """The parameters to change or to add such that T = 0 and C = 1 exactly where `closed`.

        Raises:
          ValueError: where that cannot be.
        """
        biases = {name: bias for name in CLOSED if (bias := bias_of(params, name)) is not None}
        if "t" not in biases:
            raise ValueError("it has no t/bias")
        return {name: {"bias": jnp.where(closed[..., None], CLOSED[name], b)} for name, b in biases.items()}


class Flagged(Gated):
    """A module without affine gates, which one more parameter closes: `closed`, an attribute of NNX modules."""

    def closing(self, params: Any, closed: jax.Array) -> Any:
        # A parameter, as these alone follow their layer into a scan. What was closed before stays so.
        return {"closed": closed | params.get("closed", False)}


class HighwayDense(Gated, nn.Module):
    """A fully connected highway layer, y = H(x) T(x) + x C(x) (Eq. 2 and 3).

    Maps (..., n) to (..., n): a highway layer keeps its input's width, unless `features` changes it. Parameters
    live under `h` and `t` (and `c`), each with `kernel` (n, features) and `bias` (features,).

    Attributes:
      activation: H's nonlinearity: "relu", "tanh" or a function.
      transform_bias: initial bias of the transform gate (Section 2.2); negative values carry. An
        independent carry gate starts at the opposite bias, hence open where T is closed.
      carry: "coupled" for C = 1 - T (Eq. 3), "independent" for a gate with its own weights (Eq. 2).
      features: number of units, if not the input's; x is then zero-padded or sub-sampled to it (`ops.resize`).
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
    features: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1] if self.features is None else self.features
        return _highway(self, x, resize(x, features), partial(_dense, self, features))


class HighwayConv(Gated, nn.Module):
    """A convolutional highway layer (Eq. 2 and 3, Section 2.1).

    Maps (batch, *spatial, channels) to the same shape, unless `features` or `strides` change it: H and T use
    receptive fields of one size, with zero-padding. Parameters live under `h` and `t` (and `c`), each with
    `kernel` (*kernel_size, channels, features) and `bias` (features,).

    Attributes:
      kernel_size: receptive field, one number per spatial dimension.
      features: number of feature maps, if not the input's; x is then zero-padded or sub-sampled to it, as
        by `strides` (`ops.resize`).
      strides: of the receptive fields, in every dimension; each is centred on what x is sub-sampled to.
      activation, transform_bias, carry, kernel_init, dtype, param_dtype: as in `HighwayDense`.
      implementation: "xla", or "fused": this project's kernels where they can (`functional.direct`). These have no
        forward mode and no second derivatives, and do not call H's and T's modules, so that neither
        `capture_intermediates` nor `nn.intercept_methods` sees them.

    Raises:
      ValueError: for an unknown activation, carry or implementation, an invalid kernel size, or an input with another
        number of dimensions.
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
        _check_images(x, self.kernel_size)
        features = x.shape[-1] if self.features is None else self.features
        if self.implementation == "fused" and self.carry == "coupled" and (features, self.strides) == (x.shape[-1], 1):
            h, t = _known(self, "h"), _known(self, "t")
            if h and t and (states := fused_highway(x, h, t, self.activation)):
                return _sown(self, states_of(*states))
        shortcut = resize(x, features, self.strides)
        return _highway(self, x, shortcut, partial(_conv, self, features, centered(self.kernel_size)))


class Highway(Flagged, nn.Module):
    """A highway layer around any modules, y = H(x) T(x) + x C(x) (Eq. 2 and 3), whatever form H takes.

    Maps x of any shape (..., n) to the same shape, which H keeps:

        Highway(nn.MultiHeadDotProductAttention(num_heads=4))  # of (batch, time, n)
        Highway(nn.RNN(nn.GRUCell(64)), transform_bias=-2.0)  # of (batch, time, 64)

    Parameters and other variables live under `h`, `t` and `c`, as far as the modules have any, wherever the layer is
    built. A module that is used in several places has them under the last layer that is given it, or where it was
    first called, if that was before.

    Attributes:
      h: any module, called with x; its output is the block state.
      t: any module, called with x; sigmoid(t(x) + transform_bias) is the transform gate, so that whatever starts near
        zero starts biased to carry. By default a dense layer, which starts as that of `HighwayDense`: He's normal
        kernel, and a bias of its own at `transform_bias`.
      c: likewise, with the opposite bias, an independent carry gate; by default C = 1 - T.
      transform_bias: of the gates (Section 2.2); negative values carry. May be traced.

    Raises:
      ValueError: if what H, T or C give has another shape than x.
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
        bias = bias_of(params, "t")
        if self.t is None or bias is None:
            return bias
        traced = isinstance(self.transform_bias, jax.core.Tracer)  # computed in a parent's method, so not known here
        return None if traced else bias + self.transform_bias

    def closing(self, params: Any, closed: jax.Array) -> Any:
        rule = Gated if self.t is None and self.c is None else Flagged
        return rule.closing(self, params, closed)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.t is None:
            bias_init = constant(self.transform_bias)
            t = nn.Dense(x.shape[-1], kernel_init=normalized("relu"), bias_init=bias_init, name="t")(x)
        else:
            t = self.t(x) + self.transform_bias
        c = None if self.c is None else self.c(x) - self.transform_bias
        return _sown(self, mixed_of(x, self.h(x), t, c, self.get_variable("params", "closed")))


class Skippable(Flagged, nn.Module):
    """A residual branch that can be closed, y = x + h: what `highway_jax.analysis` lesions in networks without gates.

    It counts as a layer whose gates are open, T = C = 1; closed, it is the identity. It has no parameters.

        x = Skippable()(x, nn.Dense(64)(nn.relu(nn.LayerNorm()(x))))

    Raises:
      ValueError: if x and h differ in shape.
    """

    @nn.compact
    def __call__(self, x: jax.Array, h: jax.Array) -> jax.Array:
        return _sown(self, branch(x, h, self.get_variable("params", "closed")))


def branch(x: jax.Array, h: jax.Array, closed: jax.Array | None) -> dict[str, jax.Array]:
    """The inner states of a `Skippable`, which is open where `closed` is None."""
    if x.shape != h.shape:
        raise ValueError(f"x is of shape {x.shape} and h of shape {h.shape}; both must be of the same")
    t, y = jnp.ones_like(h), x + h
    if closed is not None:
        t, y = jnp.where(closed, 0, t), jnp.where(closed, x, y)
    return {"block_state": h, "transform_gate": t, "carry_gate": jnp.ones_like(x), "block_output": y}


class Dropout(nn.Module):
    """Dropout whose rate may be traced, such as a hyperparameter that differs from run to run.

    Otherwise as `flax.linen.Dropout`, which refuses such a rate; of an ordinary rate it drops the same units.

    Attributes:
      rate: the probability of dropping a unit, from 0 to 1.
      deterministic: whether to drop nothing; may be given in the call instead.
    """

    rate: float | jax.Array
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return x
        return drop(self.make_rng("dropout"), x, self.rate)


def drop(key: jax.Array, x: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Zero each unit of `x` with probability `rate`, and scale the others such that means stay as they are.

    Raises:
      ValueError: for an ordinary number that is no probability; that of a traced one is not known.
    """
    if isinstance(rate, int | float) and not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}; it must be from 0 to 1")
    keep = jnp.asarray(1 - rate, x.dtype)
    scaled = x / jnp.where(keep > 0, keep, 1)  # no gradient of infinity times zero
    return jnp.where(bernoulli(key, jnp.asarray(1 - rate, jnp.result_type(rate, float)), x.shape), scaled, 0)


def bias_of(params: Any, name: str) -> jax.Array | None:
    """The bias of a module's affine map, None if it has none."""
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
    """A layer's output, its inner states sown."""
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
    """The inner states of a `Highway`, from what H gives and from the gates' pre-activations.

    Raises:
      ValueError: if one of them has another shape than x.
    """
    for name, state in {"h": h, "t": t, "c": c}.items():
        if state is not None and state.shape != x.shape:
            raise ValueError(f"{name} must keep its input's shape {x.shape}, but gives {state.shape}")
    return mixed(x, h, jax.nn.sigmoid(t), None if c is None else jax.nn.sigmoid(c), closed)


def _dense(layer: Any, features: int, name: str, bias: Any = 0.0) -> nn.Dense:
    return nn.Dense(features, name=name, **_affine_options(layer, bias))


def _conv(layer: Any, features: int, padding: Any, name: str, bias: Any = 0.0) -> nn.Conv:
    size, run, options = window(layer.kernel_size), implemented(layer.implementation), _affine_options(layer, bias)
    return nn.Conv(features, size, layer.strides, padding, conv_general_dilated=run, name=name, **options)


def _known(layer: nn.Module, name: str) -> tuple[jax.Array, jax.Array] | None:
    """The kernel and bias of an affine map whose module need not run; None before it has any."""
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
