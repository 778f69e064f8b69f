"""Kinds of layers for very deep networks: affine maps of a layer's input, followed by an elementwise cell.

A kind defines only what a layer does between two matrix products. `highway_jax.stack` computes a stack of such layers,
with a backward pass that is derived from the cell. A new kind needs only its equations:

```python
def cell(x, z, phi, transform_bias):
    return {"block_output": x + gate(z["t"]) * phi(z["h"])}

model = MLP(depth=100, kind=Kind(cell, lambda transform_bias: {"h": 0.0, "t": transform_bias}))
```
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from highway_jax.functional.activations import Function, gate
from highway_jax.functional.ops import explicit_highway

States = dict[str, jax.Array]
Cell = Callable[[Any, States, Function, Any], States]


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Attributes:
      cell: `cell(state, z, phi, transform_bias)`, an elementwise function. `state` is the layer's input x,
        (batch, width). `z` has the affine maps of x by name, each of x's shape. `phi` is the activation, and
        `transform_bias` is that of the run. The cell returns `block_output`, and any inner states to inspect, by name
        and each of x's shape; `highway_jax.analysis` uses the one named `transform_gate`. For the backward pass, `phi`
        and `functional.activations.gate` keep only their outputs.
      biases: `biases(transform_bias)` returns the initial bias of each affine map by name, and thus names the maps. A
        lesion (see `highway_jax.analysis`) treats maps named `t` and `c` as pre-activations of transform and carry
        gates.
      carries: the names of the cell's results that the next layer receives. The affine maps read the first one, which
        is also the output of the last layer. With more than one, `state` is a tuple. All start as the input of the
        stack.
      gated: whether `transform_bias` has an effect.
    """

    cell: Cell
    biases: Callable[[Any], dict[str, Any]]
    carries: tuple[str, ...] = ("block_output",)
    gated: bool = True


def _plain(x, z, phi, transform_bias):
    return {"block_output": phi(z["h"])}


def _highway(x, z, phi, transform_bias):
    h, t = phi(z["h"]), gate(z["t"])
    c = gate(z["c"]) if "c" in z else None
    y = explicit_highway(x, h, t, c)
    return {"block_state": h, "transform_gate": t, "carry_gate": 1 - t if c is None else c, "block_output": y}


def _residual(x, z, phi, transform_bias):
    h = phi(z["h"])
    return {"block_state": h, "block_output": x + h}


def _fixed(x, z, phi, transform_bias):
    h, g = phi(z["h"]), jax.nn.sigmoid(jnp.asarray(transform_bias, x.dtype))
    return {"block_state": h, "block_output": h * g + x * (1 - g)}


def _lstm(state, z, phi, transform_bias):
    _, c = state
    h, i, f, o = phi(z["h"]), gate(z["i"]), gate(z["f"]), gate(z["o"])
    c = explicit_highway(c, h, i, f)
    gates = {"input_gate": i, "forget_gate": f, "output_gate": o}
    return {"block_state": h, **gates, "cell_state": c, "block_output": o * phi(c)}


PLAIN = Kind(_plain, lambda b: {"h": 0.0}, gated=False)
"""y = H(x) (Eq. 1)."""

HIGHWAY = Kind(_highway, lambda b: {"h": 0.0, "t": b})
"""y = H(x) T(x) + x (1 - T(x)) (Eq. 3)."""

INDEPENDENT = Kind(_highway, lambda b: {"h": 0.0, "t": b, "c": -b})
"""y = H(x) T(x) + x C(x) (Eq. 2): the carry gate has its own weights, and its bias starts opposite to that of T."""

RESIDUAL = Kind(_residual, lambda b: {"h": 0.0}, gated=False)
"""y = x + H(x) (He et al., arXiv:1512.03385, without normalization)."""

FIXED = Kind(_fixed, lambda b: {"h": 0.0})
"""y = H(x) g + x (1 - g): a highway layer whose gate is the constant g = sigmoid(transform_bias)."""

LSTM = Kind(_lstm, lambda b: {"h": 0.0, "i": b, "f": -b, "o": 0.0}, carries=("block_output", "cell_state"))
"""An LSTM block unrolled in depth (footnote 2): c = H(y) i + c f, and y = o phi(c).

The pre-activations of the input, forget and output gates i, f and o are affine in the output of the layer below
(Hochreiter and Schmidhuber, 1997; the forget gate is from Gers et al., ref. [30]). As ref. [30] proposes, a layer
starts by carrying: the biases of the input gates start at `transform_bias`, those of the forget gates at its opposite,
and those of the output gates at 0. phi is the activation of the run in both places. The stack's input enters only at
the first layer, where y and c both start as that input.
"""

KINDS = {
    "highway": HIGHWAY,
    "independent": INDEPENDENT,
    "plain": PLAIN,
    "residual": RESIDUAL,
    "fixed": FIXED,
    "lstm": LSTM,
}


def named(kind: str | Kind) -> Kind:
    """Return the kind with a name, or the given `Kind`.

    Raises:
      ValueError: if the name is unknown.
    """
    if isinstance(kind, Kind):
        return kind
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(map(repr, KINDS))}, or a Kind")
    return KINDS[kind]
