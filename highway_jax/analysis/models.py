"""A network that is analysed, Linen or NNX: its highway layers, and what it gives with some of them closed.

Highway layers are found where they sow their states, and known by their modules' paths. A module may hold one layer
(`HighwayDense`) or a stack of them with a leading axis on every parameter (`HighwayStack`, `nn.scan`).
"""

import abc
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from highway_jax.data import Array
from highway_jax.linen.layers import CLOSED, Gated

Path = tuple[Any, ...]
Sown = dict[Path, tuple[jax.Array, ...]]  # by module path and name; a value for every call
STATES = ("block_state", "transform_gate", "carry_gate", "block_output")
MEASURABLE = 1e-3  # a carry gate below this leaves too few digits of a layer's input


@dataclasses.dataclass(frozen=True)
class Layers:
    """The highway layers of one module.

    Attributes:
      path: the module's.
      gates: how its biases are read and its layers closed.
      leading: what stacks them in front of the batch, (layers,) or nothing.
      blocks: of each.
    """

    path: Path
    gates: Gated
    leading: tuple[int, ...]
    blocks: int

    @property
    def count(self) -> int:
        """How many layers."""
        return math.prod(self.leading)

    def biases(self, params: Any) -> jax.Array:
        """Of the transform gates, (count, blocks), from the module's parameters; NaN where they have none."""
        shape, bias = (self.count, self.blocks), self.gates.gate_bias(params)
        return jnp.full(shape, jnp.nan) if bias is None or bias.size != math.prod(shape) else bias.reshape(shape)

    def closing(self, params: Any, closed: jax.Array) -> Any:
        """What becomes of the module's parameters where layers, (count,), are closed.

        Raises:
          ValueError: if they cannot be.
        """
        try:
            return self.gates.closing(params, closed.reshape(self.leading))
        except ValueError as error:
            raise ValueError(f"layer {name_of(self.path)!r} cannot be closed: {error}") from None

    def states(self, sown: Sown) -> list[dict[str, jax.Array]]:
        """What each layer has of the inner states, by name, (batch, blocks): feature maps are averaged over space."""
        states = {name: sown[*self.path, name][0] for name in STATES if (*self.path, name) in sown}
        states = {name: s.reshape(self.count, *s.shape[len(self.leading) :]) for name, s in states.items()}
        if len(states) == len(STATES):
            states["block_input"] = _inputs(**states)
        states = {
            name: s.mean(axis=tuple(range(2, s.ndim - 1)), dtype=jnp.promote_types(s.dtype, jnp.float32))
            for name, s in states.items()
        }
        return [{name: state[index] for name, state in states.items()} for index in range(self.count)]


def _inputs(
    block_state: jax.Array, transform_gate: jax.Array, carry_gate: jax.Array, block_output: jax.Array
) -> jax.Array:
    """Inputs of consecutive layers, (layers, ...); the first layer's by Eq. 2, NaN where its carry gate is closed."""
    first = (block_output[:1] - block_state[:1] * transform_gate[:1]) / carry_gate[:1]
    known = jnp.where(carry_gate[:1] >= MEASURABLE, first, jnp.nan)
    return jnp.concatenate([known, block_output[:-1]])


class Network(abc.ABC):
    """A model in evaluation mode, as pure functions of its variables.

    Attributes:
      variables: nested dicts of arrays.
      layers: the modules that hold highway layers, in the order in which the network calls them.
      params: where in the variables the parameters are.
    """

    variables: Any
    layers: list[Layers]
    params: Path = ()

    @property
    def count(self) -> int:
        """How many highway layers."""
        return sum(layers.count for layers in self.layers)

    @property
    def biases(self) -> list[jax.Array]:
        """Of each layer's transform gates, (blocks,)."""
        return [bias for layers in self.layers for bias in layers.biases(self._of(layers, self.variables))]

    def closed(self, variables: Any, closed: Array) -> Any:
        """The variables with layers closed where `closed`, (layers,) bool, which may be traced."""
        flat, first = dict(flatten_dict(variables)), 0
        for layers in self.layers:
            here = jnp.asarray(closed)[first : first + layers.count]
            first += layers.count
            changes = flatten_dict(layers.closing(self._of(layers, variables), here))
            flat |= {(*self.params, *layers.path, *rest): leaf for rest, leaf in changes.items()}
        return unflatten_dict(flat)

    def states(self, variables: Any, batch: Any) -> list[dict[str, jax.Array]]:
        """What each highway layer has of the inner states, by name, (batch, blocks)."""
        sown = self.sown(variables, batch)
        return [states for layers in self.layers for states in layers.states(sown)]

    @abc.abstractmethod
    def outputs(self, variables: Any, batch: Any) -> Any:
        """What the model gives for a batch."""

    @abc.abstractmethod
    def sown(self, variables: Any, batch: Any) -> Sown:
        """What its modules sow meanwhile."""

    @abc.abstractmethod
    def as_given(self, variables: Any) -> Any:
        """Variables in the form in which the network's were given; of NNX a module that has them."""

    def _of(self, layers: Layers, variables: Any) -> Any:
        for key in (*self.params, *layers.path):
            variables = variables.get(key, {})
        return variables


def holders(sown: Mapping[Path, Sequence[Any]], model: Any) -> list[Path]:
    """The paths of the modules that hold highway layers, those inside another one's gate left out.

    Raises:
      ValueError: if there are none, or one is applied more than once.
    """
    found = [path[:-1] for path in sown if path[-1] == "transform_gate"]
    gates = {(*path, name) for path in found for name in CLOSED}
    found = [path for path in found if not any(path[:depth] in gates for depth in range(len(path) + 1))]
    if not found:
        raise ValueError(f"this {type(model).__name__} has no highway layers and no Skippable branches to look at")
    for path in found:
        if len(sown[(*path, "transform_gate")]) > 1:
            raise ValueError(f"layer {name_of(path)!r} is applied more than once, so it has no place in the order")
    return found


def gates_of(module: Any) -> Gated:
    """How a module's biases are read and its layers closed: its own way, or that of affine T and C."""
    return module if isinstance(module, Gated) else Gated()


def name_of(path: Iterable[Any]) -> str:
    """A path as one word."""
    return "/".join(map(str, path))
