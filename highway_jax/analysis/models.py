"""The analysis of a Linen or NNX network: its highway layers, and its outputs with some of them closed.

Highway layers are found by the states that they sow, and are identified by the paths of their modules. A module may
hold one layer (`HighwayDense`), or a stack of layers with a leading axis on every parameter (`HighwayStack`,
`nn.scan`).
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
Sown = dict[Path, tuple[jax.Array, ...]]  # by module path and name, with a value for each call
STATES = ("block_state", "transform_gate", "carry_gate", "block_output")
MEASURABLE = 1e-3  # a carry gate below this leaves too few digits of a layer's input


@dataclasses.dataclass(frozen=True)
class Layers:
    """The highway layers of one module.

    Attributes:
      path: the path of the module.
      gates: reads the biases of the gates and closes layers.
      leading: the axes in front of the batch that stack the layers, such as (layers,), or ().
      blocks: the number of blocks of each layer.
    """

    path: Path
    gates: Gated
    leading: tuple[int, ...]
    blocks: int

    @property
    def count(self) -> int:
        """The number of layers."""
        return math.prod(self.leading)

    def biases(self, params: Any) -> jax.Array:
        """(count, blocks) the biases of the transform gates from the module's parameters; NaN if they have none."""
        shape, bias = (self.count, self.blocks), self.gates.gate_bias(params)
        return jnp.full(shape, jnp.nan) if bias is None or bias.size != math.prod(shape) else bias.reshape(shape)

    def closing(self, params: Any, closed: jax.Array) -> Any:
        """The changed parameters of the module if layers are closed where `closed`, (count,).

        Raises:
          ValueError: if the layers cannot be closed.
        """
        try:
            return self.gates.closing(params, closed.reshape(self.leading))
        except ValueError as error:
            raise ValueError(f"layer {name_of(self.path)!r} cannot be closed: {error}") from None

    def states(self, sown: Sown) -> list[dict[str, jax.Array]]:
        """The inner states of each layer by name, (batch, blocks); feature maps are averaged over space."""
        states = {name: sown[*self.path, name][0] for name in STATES if (*self.path, name) in sown}
        states = {name: s.reshape(self.count, *s.shape[len(self.leading) :]) for name, s in states.items()}
        if len(states) == len(STATES):
            states["block_input"] = _inputs(**states)
        for name, s in states.items():
            average = jnp.nanmean if name == "block_input" else jnp.mean  # of the pixels where it is known
            space, dtype = tuple(range(2, s.ndim - 1)), jnp.promote_types(s.dtype, jnp.float32)
            states[name] = average(s, axis=space, dtype=dtype)
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
      params: the path of the parameters in the variables.
    """

    variables: Any
    layers: list[Layers]
    params: Path = ()

    @property
    def count(self) -> int:
        """The number of highway layers."""
        return sum(layers.count for layers in self.layers)

    @property
    def biases(self) -> list[jax.Array]:
        """The biases of the transform gates of each layer, (blocks,)."""
        return [bias for layers in self.layers for bias in layers.biases(self._of(layers, self.variables))]

    def closed(self, variables: Any, closed: Array) -> Any:
        """The variables with layers closed where `closed`, a boolean array (layers,) that may be traced."""
        flat, first = dict(flatten_dict(variables)), 0
        for layers in self.layers:
            here = jnp.asarray(closed)[first : first + layers.count]
            first += layers.count
            changes = flatten_dict(layers.closing(self._of(layers, variables), here))
            flat |= {(*self.params, *layers.path, *rest): leaf for rest, leaf in changes.items()}
        return unflatten_dict(flat)

    def states(self, variables: Any, batch: Any) -> list[dict[str, jax.Array]]:
        """The inner states of each highway layer by name, (batch, blocks)."""
        sown = self.sown(variables, batch)
        return [states for layers in self.layers for states in layers.states(sown)]

    @abc.abstractmethod
    def outputs(self, variables: Any, batch: Any) -> Any:
        """The outputs of the model for a batch."""

    @abc.abstractmethod
    def sown(self, variables: Any, batch: Any) -> Sown:
        """What the modules sow when the model is called with a batch."""

    @abc.abstractmethod
    def as_given(self, variables: Any) -> Any:
        """Variables in the form in which they were given; for NNX, a module with these variables."""

    def _of(self, layers: Layers, variables: Any) -> Any:
        for key in (*self.params, *layers.path):
            variables = variables.get(key, {})
        return variables


def holders(sown: Mapping[Path, Sequence[Any]], model: Any) -> list[Path]:
    """The paths of the modules that hold highway layers, without those inside the gate of another layer.

    Raises:
      ValueError: if there are none, or a layer is applied more than once.
    """
    found = [path[:-1] for path in sown if path[-1] == "transform_gate"]
    gates = {(*path, name) for path in found for name in CLOSED}
    found = [path for path in found if not any(path[:depth] in gates for depth in range(len(path) + 1))]
    if not found:
        raise ValueError(f"this {type(model).__name__} has no highway layers and no Skippable branches to analyze")
    for path in found:
        if len(sown[(*path, "transform_gate")]) > 1:
            raise ValueError(f"layer {name_of(path)!r} is applied more than once, so it has no place in the order")
    return found


def gates_of(module: Any) -> Gated:
    """The object that reads a module's biases and closes its layers: the module itself, or one for affine T and C."""
    return module if isinstance(module, Gated) else Gated()


def name_of(path: Iterable[Any]) -> str:
    """A path as text."""
    return "/".join(map(str, path))
