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

# The authors' initializer: Glorot's as implemented in Caffe, which considers only the inputs of a layer.
caffe_xavier = variance_scaling(1.0, "fan_in", "uniform")


class ConvNet(nn.Module):
    """A highway, plain or residual convolutional network that is described by a list of stages.

    It maps images (batch, height, width, channels) to logits (batch, num_classes), by the stages and a fully connected
    output layer. `highway_jax.zoo.paper` has the stages of the paper's networks.

    Its parameters are under `layer1`, `layer2` and so on, each as in `highway_jax.linen.layers`, and under `output`.
    The number of these layers is the depth of the network as the paper counts it. Plain and residual networks use the
    same names. Highway layers sow their inner states into the `intermediates` collection.

    Dropout is active in training: `model.apply(variables, x, train=True, rngs={"dropout": key})`.

    Attributes:
      stages: stages as text, such as "2 highway 3x3", or as objects (see `highway_jax.zoo.stages`).
      num_classes: the number of classes.
      kind: "highway"; "plain", which replaces each highway layer by a plain layer of the same size; or "residual",
        which adds the input of that plain layer to its output.
      activation: as in `MLP`; may be traced.
      transform_bias: the initial bias of the transform gates; may be traced. Plain and residual networks ignore it.
      kernel_init: the initializer of the kernels; by default the authors', which is uniform with variance 1 / fan-in.
      output_std: the standard deviation of the initial weights of the output layer; None uses `kernel_init`.
      dtype: the dtype of the computation; by default, the promoted dtype of input and parameters.
      param_dtype: the dtype of the parameters and the logits.
      implementation: "xla", or "fused" for this library's CPU kernels where they apply (see
        `functional.convolution.conv`). "fused" trains about twice as fast on a CPU, but has no forward mode and no
        second derivatives.

    Raises:
      ValueError: if the kind, the activation or the implementation is unknown, the number of classes is below 1, or a
        stage is invalid or does not fit its input; the message names the stage.

    Example:
      ```python
      stages = "conv 32 5x5 valid", "3 highway 3x3", "maxpool 2x2", "3 highway 3x3", "avgpool 12x12"
      model = ConvNet(stages, transform_bias=-2.0)
      variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      ```
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
        """Return the logits (batch, num_classes) for images x; dropout is active if `train`."""
        return self.layer_outputs(x, train)[-1]

    @nn.compact
    def layer_outputs(self, x: jax.Array, train: bool = False) -> list[jax.Array]:
        """Return the outputs of all layers: `layer1` and so on, and at the end the logits.

        Under `jax.jit`, only the layers that are needed are computed.
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
            return  # the padding makes any input large enough
        case Maxout(pad=int(pad)):
            pass
        case _:
            pad = 0
    height, width = x.shape[1:3]
    if stage.window[0] > height + 2 * pad or stage.window[1] > width + 2 * pad:
        raise ValueError(f"stage '{stage}' does not fit its input, images of {height}x{width}")
