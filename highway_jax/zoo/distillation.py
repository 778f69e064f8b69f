"""A trained network teaches another: hints and softened outputs (FitNets, Romero et al., arXiv:1412.6550).

In the first epochs the student's layers up to its guided layer learn to predict, through a convolutional regressor,
what the teacher has in its hint layer. After them all of the student learns from the labels and from the teacher's
outputs. Both stages are one run of one task: which of them a step belongs to follows from its number.

From the authors' released code: the regressor is a layer of the hint layer's kind without padding, whose windows make
the sizes meet; the temperature of 3; the weight of the teacher's outputs, from 4 to 1. There, layers include their
pooling, and the weight falls from epoch 5 to 400 of 500; here hint and guided layer are compared before it, and it
falls over the whole second stage. Their optimizer is RMSProp, here it is the caller's; with momentum SGD the hints have
not been seen to help (experiments/configs/digits.py).
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
WEIGHT = 4.0, 1.0  # of the teacher's outputs, at the second stage's beginning and end


def hint_loss(prediction: jax.Array, hint: jax.Array) -> jax.Array:
    """Half the mean squared difference of two arrays of one shape (Eq. 3 of the FitNets)."""
    return jnp.square(_float32(prediction) - _float32(hint)).mean() / 2


def distillation_loss(logits: jax.Array, teacher: jax.Array, temperature: float = TEMPERATURE) -> jax.Array:
    """Mean cross entropy (nats) of softened outputs with the teacher's (Eq. 2 of the FitNets, second term).

    Args:
      logits, teacher: (batch, classes) outputs of student and teacher.
      temperature: what both are divided by.
    """
    logits, teacher = _float32(logits), _float32(teacher)
    return optax.softmax_cross_entropy(logits / temperature, jax.nn.softmax(teacher / temperature)).mean()


def _float32(x: jax.Array) -> jax.Array:
    """Losses of bfloat16 outputs are computed in float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network; both methods take preprocessed inputs, (batch, height, width, channels).

    Attributes:
      network: the network.
      params: its parameters.
      hint_layer: the number of its hint layer, from 1.
    """

    network: ConvNet
    params: Any
    hint_layer: int

    def hint(self, inputs: Array) -> jax.Array:
        """What its hint layer has.

        Raises:
          ValueError: if there is no such layer.
        """
        outputs = self.network.apply({"params": self.params}, inputs, method="layer_outputs")
        return _layer("hint_layer", self.hint_layer, outputs)

    def logits(self, inputs: Array) -> jax.Array:
        """Its outputs, (batch, classes)."""
        return self.network.apply({"params": self.params}, inputs)  # type: ignore[return-value]


class Student(nn.Module):
    """A network that a teacher guides, in training; otherwise it is the network.

    Parameters: the network's, and beside them the `regressor`'s. The collection `stages` counts the steps.

    Attributes:
      network: the network.
      guided_layer: the number of its guided layer, from 1.
      teacher: the teacher. It gets the inputs that the student gets, augmentation included.
      hint_epochs: of the first stage.
      epochs: of both.
      steps_per_epoch: steps in an epoch.

    Raises:
      ValueError: where either layer is none or has no images, or the guided layer's are smaller than the hint's.
    """

    network: ConvNet
    guided_layer: int
    teacher: Teacher
    hint_epochs: int = 1
    epochs: int = 2
    steps_per_epoch: int = 1

    def setup(self) -> None:
        nn.share_scope(self, self.network)
        self.steps = self.variable("stages", "steps", lambda: jnp.int32(0))

    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """`logits`; in training also `objective`, what a batch with the cross entropy 0 is trained on, and whether it
        is all there is, as in the `first` stage. Runs in lockstep compute both stages' all along."""
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
        """The loss of the first stage, without dropout."""
        hint = self.teacher.hint(x)
        guided = _layer("guided_layer", self.guided_layer, self.network.layer_outputs(x))
        sizes = [y.shape[1:3] for y in (guided, hint) if y.ndim == 4]
        if len(sizes) < 2 or any(here < there for here, there in zip(*sizes, strict=True)):
            raise ValueError(
                f"guided_layer {self.guided_layer} has outputs of shape {guided.shape[1:]}, the teacher's hint_layer "
                f"{self.teacher.hint_layer} has {hint.shape[1:]}; both must be images, the hint's not the larger ones"
            )
        window = [here - there + 1 for here, there in zip(*sizes, strict=True)]
        return hint_loss(Maxout(hint.shape[-1], window, padding="VALID", name="regressor")(guided), hint)


def _layer(name: str, number: int, outputs: Any) -> jax.Array:
    """What a layer before the output has, of `ConvNet.layer_outputs`."""
    if not 1 <= number < len(outputs):
        raise ValueError(f"{name} is {number}; it must be 1 to {len(outputs) - 1}, a layer before the output")
    return outputs[number - 1]


def taught(
    student: Callable[[Any], Student], optimizer: Callable[[Any], optax.GradientTransformation], **hooks: Any
) -> Task:
    """The task of training a network in two stages by a teacher.

    In the first stage nothing but the layers up to the guided one and the regressor changes. The loss is what a step
    lowers; the metric `cross_entropy` is the labels' alone, comparable with training without a teacher.

    Args:
      student: builds the student from hyperparameters.
      optimizer: as for `population.supervised`.
      hooks: `preprocess` and `augment`, likewise.
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
    """No updates in the first stage but of what it trains: weight decay would go on shrinking the rest."""
    early = {"regressor", *(f"layer{number}" for number in range(1, student.guided_layer + 1))}

    def update(updates: Any, count: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        first = count // student.steps_per_epoch < student.hint_epochs
        late = jax.tree.map(lambda update: jnp.where(first, 0, update), updates)
        return {name: (updates if name in early else late)[name] for name in updates}, count + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)
