"""Kinds of layers for very deep networks: affine maps of a layer's input, then an elementwise cell.

A kind says what a layer does between two products, and nothing else; `highway_jax.stack` makes a network of it, with
a backward pass derived from the cell. A further kind needs nothing but its equations:

    def cell(x, z, phi, transform_bias):
        return {"block_output": x + gate(z["t"]) * phi(z["h"])}

    model = MLP(depth=100, kind=Kind(cell, lambda transform_bias: {"h": 0.0, "t": transform_bias}))
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
      cell: `cell(state, z, phi, transform_bias)`, elementwise. `state` is the layer's input x, (batch, width); z has an
        affine map of x by name, each of x's shape; phi is the run's activation, `transform_bias` the run's. Returns
        whatever is worth looking at, by name, each of x's shape, `block_output` among it; `highway_jax.analysis` looks
        at what is called `transform_gate`. `phi` and `functional.activations.gate` keep nothing but their output
        for the backward pass.
      biases: what each affine map's bias starts at, by name, given the run's `transform_bias`; it names the maps. A
        lesion (`highway_jax.analysis`) takes those named t and c for the pre-activations of transform and carry gates.
      carries: which of the cell's results the next layer gets. The affine maps read the first one, and the last
        layer's is the output. With several, `state` is a tuple of them; all start as the stack's input.
      gated: whether `transform_bias` means anything to it.
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
"""y = H(x) T(x) + x C(x) (Eq. 2): the carry gate has weights of its own, and starts open where T starts closed."""

RESIDUAL = Kind(_residual, lambda b: {"h": 0.0}, gated=False)
"""y = x + H(x) (He et al., arXiv:1512.03385, without normalization)."""

FIXED = Kind(_fixed, lambda b: {"h": 0.0})
"""y = H(x) g + x (1 - g): a highway layer whose gate is the same number everywhere, sigmoid(transform_bias)."""

LSTM = Kind(_lstm, lambda b: {"h": 0.0, "i": b, "f": -b, "o": 0.0}, carries=("block_output", "cell_state"))
"""An LSTM block unrolled in depth (footnote 2): c = H(y) i + c f, and y = o phi(c).

Input, forget and output gates are affine in the output of the layer below (Hochreiter & Schmidhuber 1997; the forget
gate is Gers et al.'s, ref. [30]). It starts by carrying, as ref. [30] proposes: the input gates' biases are
`transform_bias`, the forget gates' its opposite, the output gates' 0. phi is the run's activation in both places. There
is no input from outside but the first: y and c both start as the stack's input.
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
    """The kind of that name, or the given one.

    Raises:
      ValueError: for an unknown name.
    """
    if isinstance(kind, Kind):
        return kind
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(map(repr, KINDS))}, or a Kind")
    return KINDS[kind]
