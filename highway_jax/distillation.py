"""A trained network teaches another: hints and softened outputs (FitNets, Romero et al., arXiv:1412.6550).

In the first epochs the student's layers up to its guided layer learn to predict, through a convolutional regressor,
what the teacher has in its hint layer. After them all of the student learns from the labels and from the teacher's
outputs. Both stages are one run of one recipe: which of them an epoch belongs to follows from its number.

From the authors' released code: the regressor is a layer of the hint layer's kind without padding, whose windows make
the sizes meet; the temperature of 3; the weight of the teacher's outputs, from 4 to 1. There, layers include their
pooling, and the weight falls from epoch 5 to 400 of 500; here hint and guided layer are compared before it, and it
falls over the whole second stage. Their optimizer is RMSProp, here it is the recipe's; with momentum SGD the hints have
not been seen to help (experiments/configs/digits.py).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from highway_jax.data import Array
from highway_jax.maxout import Maxout
from highway_jax.models import ConvNet
from highway_jax.training import Hyperparameters, Recipe, Run

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
        """What its hint layer has."""
        return self.network.apply({"params": self.params}, inputs, self.hint_layer)  # type: ignore[return-value]

    def logits(self, inputs: Array) -> jax.Array:
        """Its outputs, (batch, classes)."""
        return self.network.apply({"params": self.params}, inputs)  # type: ignore[return-value]


class Student(nn.Module):
    """A network that a teacher guides; called, it is the network.

    Parameters: the network's, and beside them the `regressor`'s.

    Attributes:
      network: the network.
      guided_layer: the number of its guided layer, from 1.
      teacher: the teacher.

    Raises:
      ValueError: where either layer is none or has no images, or the guided layer's are smaller than the hint's.
    """

    network: ConvNet
    guided_layer: int
    teacher: Teacher

    def setup(self) -> None:
        nn.share_scope(self, self.network)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.is_initializing():
            self.hint_loss(x)
        return self.network(x)

    @nn.compact
    def hint_loss(self, x: jax.Array) -> jax.Array:
        """The loss of the first stage, without dropout."""
        hint, guided = self.teacher.hint(x), self.network(x, self.guided_layer)
        sizes = [y.shape[1:3] for y in (guided, hint) if y.ndim == 4]
        if len(sizes) < 2 or any(here < there for here, there in zip(*sizes, strict=True)):
            raise ValueError(
                f"guided_layer {self.guided_layer} has outputs of shape {guided.shape[1:]}, the teacher's hint_layer "
                f"{self.teacher.hint_layer} has {hint.shape[1:]}; both must be images, the hint's not the larger ones"
            )
        window = [here - there + 1 for here, there in zip(*sizes, strict=True)]
        return hint_loss(Maxout(hint.shape[-1], window, padding="VALID", name="regressor")(guided), hint)


def taught(recipe: Recipe, teacher: Teacher, guided_layer: int, hint_epochs: int, epochs: int) -> Recipe:
    """A recipe for a network's training in two stages by a teacher, from that for its training without.

    In the first stage nothing but the layers up to the guided one and the regressor changes. Runs trained in lockstep
    compute both stages' losses all along.

    Args:
      recipe: the training without; its `objective` is not used.
      teacher: gets the inputs that the student gets, augmentation included.
      guided_layer: the number of the student's guided layer, from 1.
      hint_epochs: of the first stage.
      epochs: of both.
    """
    first_stage = {"regressor", *(f"layer{number}" for number in range(1, guided_layer + 1))}

    def network(hp: Hyperparameters) -> Student:
        return Student(recipe.network(hp), guided_layer, teacher)  # type: ignore[arg-type]

    def objective(run: Run, inputs: Array, logits: jax.Array, cross_entropy: jax.Array) -> jax.Array:
        def hints() -> jax.Array:
            return network(run.hyperparameters).apply({"params": run.params}, inputs, method="hint_loss")  # type: ignore[return-value]

        def outputs() -> jax.Array:
            weight = jnp.interp(run.epoch, jnp.array([hint_epochs, epochs]), jnp.array(WEIGHT))
            return cross_entropy + weight * distillation_loss(logits, teacher.logits(inputs))

        return lax.cond(run.epoch < hint_epochs, hints, outputs)

    def optimizer(hp: Hyperparameters, epoch: Any) -> optax.GradientTransformation:
        def freeze(updates: Any, params: Any) -> Any:  # weight decay would go on shrinking them
            late = jax.tree.map(lambda update: jnp.where(epoch < hint_epochs, 0, update), updates)
            return {name: (updates if name in first_stage else late)[name] for name in updates}

        return optax.chain(recipe.optimizer(hp, epoch), optax.stateless(freeze))

    return dataclasses.replace(recipe, network=network, objective=objective, optimizer=optimizer)
