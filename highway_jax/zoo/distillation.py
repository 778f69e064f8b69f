"""Training a student with a teacher's hints and softened outputs (FitNets, Romero et al., arXiv:1412.6550).

In the first stage, the student's layers up to its guided layer learn to predict the output of the teacher's hint layer
through a convolutional regressor. In the second stage, the whole student learns from the labels and from the teacher's
outputs. Both stages are one run of one task; the number of a step decides which stage it belongs to.

Three details are from the authors' released code: the regressor is a layer of the same kind as the hint layer, without
padding, whose window makes the sizes match; the temperature is 3; the weight of the teacher's outputs falls from 4 to
1.

Three others differ. In their code, layers include their pooling, and the weight falls from epoch 5 to 400 of 500. Here,
hint and guided layer are compared before pooling, and the weight falls over the whole second stage. They use RMSProp;
here, the caller chooses the optimizer. With momentum SGD, the hints have not been observed to help
(experiments/configs/digits.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from highway_jax.data import Array
from highway_jax.linen.maxout import Maxout
from highway_jax.population import Task, accuracy, cross_entropy, supervised
from highway_jax.zoo.convnet import ConvNet

TEMPERATURE = 3.0
WEIGHT = 4.0, 1.0  # of the teacher's outputs, at the beginning and the end of the second stage


def hint_loss(prediction: jax.Array, hint: jax.Array) -> jax.Array:
    """Half the mean squared difference of two arrays of the same shape (Eq. 3 of the FitNets paper)."""
    return jnp.square(_float32(prediction) - _float32(hint)).mean() / 2


def distillation_loss(logits: jax.Array, teacher: jax.Array, temperature: float = TEMPERATURE) -> jax.Array:
    """The mean cross entropy of softened outputs, in nats (second term of Eq. 2 of the FitNets paper).

    Args:
      logits: the outputs of the student, (batch, classes).
      teacher: the outputs of the teacher, (batch, classes).
      temperature: the number by which both are divided.

    Returns:
      A scalar, in float32 at least.
    """
    logits, teacher = _float32(logits), _float32(teacher)
    return optax.softmax_cross_entropy(logits / temperature, jax.nn.softmax(teacher / temperature)).mean()


def _float32(x: jax.Array) -> jax.Array:
    """Convert to float32 at least, in which losses are computed."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network. Its methods take preprocessed inputs, (batch, height, width, channels).

    Attributes:
      network: the network.
      params: its parameters.
      hint_layer: the number of its hint layer, counted from 1.
    """

    network: ConvNet
    params: Any
    hint_layer: int

    def hint(self, inputs: Array) -> jax.Array:
        """The outputs of the hint layer.

        Raises:
          ValueError: if there is no such layer.
        """
        outputs = self.network.apply({"params": self.params}, inputs, method="layer_outputs")
        return _layer("hint_layer", self.hint_layer, outputs)

    def logits(self, inputs: Array) -> jax.Array:
        """The outputs of the network, (batch, classes)."""
        return self.network.apply({"params": self.params}, inputs)  # type: ignore[return-value]


class Student(nn.Module):
    """A network that is guided by a teacher in training, and an ordinary network otherwise.

    Its parameters are those of the network, with those of the `regressor` next to them. Its collection `stages` counts
    the steps.

    Attributes:
      network: the network.
      guided_layer: the number of its guided layer, counted from 1.
      teacher: the teacher, which receives the same inputs as the student, including augmentation.
      hint_epochs: the number of epochs of the first stage.
      epochs: the number of epochs of both stages.
      steps_per_epoch: the number of steps in an epoch.

    Raises:
      ValueError: if the guided or the hint layer does not exist or has no images, or the images of the guided layer are
        smaller than those of the hint layer.
    """

    network: ConvNet
    guided_layer: int
    teacher: Teacher
    hint_epochs: int = 1
    epochs: int = 2
    steps_per_epoch: int = 1

    def setup(self) -> None:
        """Share the scope of the network, and count steps."""
        nn.share_scope(self, self.network)
        self.steps = self.variable("stages", "steps", lambda: jnp.int32(0))

    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Return a dict with `logits` and, in training, with `objective` and `first`.

        `objective` is the loss without the cross entropy of the labels, and `first` is whether the step is in the first
        stage, where the objective is the whole loss. Runs in lockstep compute the objectives of both stages throughout.
        """
        logits = self.network(x, train=train)
        if self.is_initializing():
            self.hint_loss(x)
        if not train:
            return {"logits": logits}
        epoch = self.steps.value // self.steps_per_epoch
        first = epoch < self.hint_epochs

        def hints(student: Student) -> jax.Array:
            return student.hint_loss(x)

        def outputs(student: Student) -> jax.Array:
            weight = jnp.interp(epoch, jnp.array([self.hint_epochs, self.epochs]), jnp.array(WEIGHT))
            return weight * distillation_loss(logits, self.teacher.logits(x))

        objective = nn.cond(first, hints, outputs, self)
        self.steps.value += 1
        return {"logits": logits, "objective": objective, "first": first}

    @nn.compact
    def hint_loss(self, x: jax.Array) -> jax.Array:
        """The loss of the first stage, computed without dropout."""
        hint = self.teacher.hint(x)
        guided = _layer("guided_layer", self.guided_layer, self.network.layer_outputs(x))
        sizes = [y.shape[1:3] for y in (guided, hint) if y.ndim == 4]
        if len(sizes) < 2 or any(here < there for here, there in zip(*sizes, strict=True)):
            raise ValueError(
                f"guided_layer {self.guided_layer} has outputs of shape {guided.shape[1:]}, the teacher's hint_layer "
                f"{self.teacher.hint_layer} has {hint.shape[1:]}; both must be images, the hint's no larger"
            )
        window = [here - there + 1 for here, there in zip(*sizes, strict=True)]
        return hint_loss(Maxout(hint.shape[-1], window, padding="VALID", name="regressor")(guided), hint)


def _layer(name: str, number: int, outputs: Any) -> jax.Array:
    """Select the outputs of a layer before the last from those of `ConvNet.layer_outputs`.

    Raises:
      ValueError: if there is no such layer.
    """
    if not 1 <= number < len(outputs):
        raise ValueError(f"{name} is {number}; it must be 1 to {len(outputs) - 1}, a layer before the output")
    return outputs[number - 1]


def taught(
    student: Callable[[Any], Student], optimizer: Callable[[Any], optax.GradientTransformation], **hooks: Any
) -> Task:
    """Return the task of training a network in two stages with a teacher.

    In the first stage, only the regressor and the layers up to the guided one are trained. A step lowers the `loss`.
    The metric `cross_entropy` is that of the labels only, which is comparable with training without a teacher.

    Args:
      student: `student(hp)` builds the student.
      optimizer: as for `population.supervised`.
      **hooks: `preprocess` and `augment`, as for `population.supervised`.
    """

    def loss(outputs: dict[str, jax.Array], batch: Any) -> jax.Array:
        labels = cross_entropy(outputs["logits"], batch)
        if "objective" not in outputs:
            return labels
        return outputs["objective"] + jnp.where(outputs["first"], 0, labels.mean())

    def in_stages(hp: Any) -> optax.GradientTransformation:
        return optax.chain(optimizer(hp), _first_layers_first(student(hp)))

    metrics = {
        "cross_entropy": lambda outputs, batch: cross_entropy(outputs["logits"], batch),
        "accuracy": lambda outputs, batch: accuracy(outputs["logits"], batch),
    }
    return supervised(student, loss, in_stages, metrics, **hooks)


def _first_layers_first(student: Student) -> optax.GradientTransformation:
    """Zero the updates of layers that the first stage does not train, which weight decay would shrink otherwise."""
    early = {"regressor", *(f"layer{number}" for number in range(1, student.guided_layer + 1))}

    def update(updates: Any, count: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        first = count // student.steps_per_epoch < student.hint_epochs
        late = jax.tree.map(lambda update: jnp.where(first, 0, update), updates)
        return {name: (updates if name in early else late)[name] for name in updates}, count + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)
