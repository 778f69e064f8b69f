"""The convolutional networks of Sections 3.2 and 3.3."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax.nn.initializers import normal, variance_scaling

from highway_jax.functional.activations import Activation
from highway_jax.functional.convolution import centered
from highway_jax.functional.ops import resize
from highway_jax.functional.pooling import avg_pool, max_pool
from highway_jax.linen.layers import Dropout as DropoutLayer
from highway_jax.linen.layers import HighwayConv, PlainConv, PlainDense
from highway_jax.linen.maxout import Maxout as MaxoutLayer
from highway_jax.zoo.stages import KINDS, AvgPool, Conv, Dense, Dropout, Highway, Maxout, MaxPool, Stage, parse

# The authors' initializer: Glorot's in the form that Caffe gives it, which looks at a layer's inputs alone.
caffe_xavier = variance_scaling(1.0, "fan_in", "uniform")


class ConvNet(nn.Module):
    """A convolutional network, highway, plain or residual, described by a list of stages.

    Maps (batch, height, width, channels) to logits (batch, num_classes): the stages, then a fully connected
    output layer. `highway_jax.zoo.paper` has the stages of the paper's networks.

    Parameters: `layer1`, `layer2`, ... in order, each as in `highway_jax.linen.layers`, and `output`; their number
    is the network's depth as the paper counts it. A highway network and its twins share the names.
    Highway layers show their inner states as those of `MLP` do, each under its layer's name.

    Dropout is active in training: `apply(variables, x, train=True, rngs={"dropout": key})`.

    Attributes:
      stages: texts such as "2 highway 3x3", or the stages themselves; see `highway_jax.zoo.stages`.
      num_classes: size of the output.
      kind: "highway", or "plain" to make every highway layer a plain one of the same size, or "residual" to add
        what passes through to it.
      activation: as in `MLP`; may be traced.
      transform_bias: initial bias of the transform gates; may be traced. Its twins ignore it.
      kernel_init: initializer of the layers' kernels; by default uniform, of variance 1 / fan-in, as the authors'.
      output_std: standard deviation of the output layer's initial weights; None draws them as the others.
      dtype: of the computation; the inputs' and parameters' promoted dtype by default.
      param_dtype: of the parameters and the logits.
      implementation: of the convolutions: "xla", or "fused" for this project's kernels where they can, one and a half
        to two times as fast to train on a CPU (`functional.convolution.conv`), but without forward mode and second
        derivatives.

    Raises:
      ValueError: for an unknown kind, activation or implementation, a class count below 1, a stage that is none or does
        not fit what it gets, in one line that names the stage.
    """

    stages: Sequence[str | Stage]
    num_classes: int = 10
    kind: str = "highway"
    activation: Activation = "relu"
    transform_bias: float | jax.Array = -1.0
    kernel_init: Initializer = caffe_xavier
    output_std: float | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    implementation: str = "xla"

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.layer_outputs(x, train)[-1]

    @nn.compact
    def layer_outputs(self, x: jax.Array, train: bool = False) -> list[jax.Array]:
        """What each layer gives: `layer1` and so on, and at the end `output`, the logits.

        Under `jax.jit` nothing is computed but what is used of them.
        """
        if self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; it must be at least 1")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(map(repr, KINDS))}")
        stages = [stage if isinstance(stage, Stage) else parse(stage) for stage in self.stages]
        common: dict[str, Any] = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        outputs: list[jax.Array] = []
        for stage in stages:
            _check_input(stage, x)
            match stage:
                case Dropout(rate):
                    x = DropoutLayer(rate, deterministic=not train)(x)
                case MaxPool(window, stride):
                    x = max_pool(x, window, stride or min(window))
                case AvgPool(window, stride):
                    x = avg_pool(x, window, stride or min(window))
                case _:
                    for index in range(stage.count):
                        name = f"layer{len(outputs) + 1}"
                        layer = self._layer(stage, index, x.shape[-1], name=name, **common)
                        y = layer(_flat(x) if _is_dense(stage) else x)
                        if isinstance(stage, Highway) and self.kind == "residual":
                            y += resize(x, y.shape[-1], stage.stride if index == 0 else 1)
                        x = y
                        outputs.append(x)
        init = self.kernel_init if self.output_std is None else normal(self.output_std)
        x = nn.Dense(self.num_classes, name="output", **{**common, "kernel_init": init})(_flat(x))
        return [*outputs, x.astype(self.param_dtype)]

    def _layer(
        self, stage: Conv | Highway | Dense | Maxout, index: int, channels: int, **common: Any
    ) -> Callable[[jax.Array], jax.Array]:
        if isinstance(stage, Dense):
            return PlainDense(stage.features, self.activation, **common)
        common["implementation"] = self.implementation
        if isinstance(stage, Maxout):
            padding = "SAME" if stage.pad is None else [(stage.pad, stage.pad)] * 2
            return MaxoutLayer(stage.features, stage.window, stage.pieces, padding, **common)
        features = channels if stage.features is None else stage.features
        stride = stage.stride if index == 0 else 1
        if isinstance(stage, Highway) and self.kind == "highway":
            bias = self.transform_bias
            return HighwayConv(stage.window, self.activation, bias, features=features, strides=stride, **common)
        padding = "VALID" if isinstance(stage, Conv) and stage.valid else centered(stage.window)
        return PlainConv(features, stage.window, padding, self.activation, strides=stride, **common)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def _is_dense(stage: Stage) -> bool:
    return isinstance(stage, Dense) or (isinstance(stage, Maxout) and stage.window is None)


def _check_input(stage: Stage, x: jax.Array) -> None:
    if isinstance(stage, Dropout | Dense) or stage.window is None:
        return
    if x.ndim != 4:
        raise ValueError(f"stage '{stage}' needs images, (batch, height, width, channels), but gets shape {x.shape}")
    match stage:
        case Highway() | Conv(valid=False) | Maxout(pad=None):
            return  # padded to the size of what it gets
        case Maxout(pad=int(pad)):
            pass
        case _:
            pad = 0
    height, width = x.shape[1:3]
    if stage.window[0] > height + 2 * pad or stage.window[1] > width + 2 * pad:
        raise ValueError(f"stage '{stage}' does not fit what it gets, images of {height}x{width}")
