"""Many layers of one kind as a single scan, with an explicit backward pass.

Every layer here has its weights in one affine map, `z = x @ kernel + bias`, followed by an elementwise
*cell*, `y = cell(x, z)`. For a highway layer z holds H's and T's pre-activations side by side. That shape
is what makes the stack fast: one matrix product a layer forward, one backward, and the gradients of all
layers' weights as one batched product after the backward scan, from the layers' inputs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from highway_jax.activations import Activation, activate, canonical, slope
from highway_jax.ops import highway, highway_vjp, independent_vjp

Cell = Callable[..., jax.Array]


def plain_stack(x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: Activation) -> jax.Array:
    """Apply plain layers one after another (Eq. 1).

    Args:
      x: (batch, width).
      kernel: (layers, width, width).
      bias: (layers, width).
      activation: see `highway_jax.activations`.

    Returns:
      (batch, width).
    """
    activation = canonical(activation)
    if callable(activation):
        return _affine_stack(partial(_apply, activation), x, kernel, bias)
    return _affine_stack(_plain_cell, x, kernel, bias, activation)


def highway_stack(x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: Activation) -> jax.Array:
    """Apply highway layers one after another (Eq. 2 and 3).

    Args:
      x: (batch, width).
      kernel: (layers, width, 2 * width), H's and T's columns side by side; 3 * width with an
        independent carry gate C.
      bias: (layers, 2 * width) or (layers, 3 * width).
      activation: H's; see `highway_jax.activations`.

    Returns:
      (batch, width).
    """
    activation = canonical(activation)
    if callable(activation):
        return _affine_stack(partial(_gated, activation), x, kernel, bias)
    return _affine_stack(_highway_cell, x, kernel, bias, activation)


def highway_states(x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: Activation) -> dict[str, jax.Array]:
    """Look inside a highway stack: what every layer's blocks did with `x`.

    Takes `highway_stack`'s arguments.

    Returns:
      `block_state` H(x), `transform_gate` T(x), `carry_gate` C(x) and `block_output` y, each of shape
      (layers, batch, width).
    """

    def layer(x, weights):
        h, t, c = split_gates(_affine(x, *weights), x.shape[-1], activation)
        y = highway(x, h, t, c)
        return y, {"block_state": h, "transform_gate": t, "carry_gate": 1 - t if c is None else c, "block_output": y}

    return lax.scan(layer, x, (kernel, bias))[1]


def plain_states(x: jax.Array, kernel: jax.Array, bias: jax.Array, activation: Activation) -> dict[str, jax.Array]:
    """`block_output` of every layer of a plain stack, (layers, batch, width); `plain_stack`'s arguments."""

    def layer(x, weights):
        y = activate(_affine(x, *weights), activation)
        return y, y

    return {"block_output": lax.scan(layer, x, (kernel, bias))[1]}


def split_gates(z: jax.Array, width: int, activation: Activation) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """H, T and C (None when coupled) from pre-activations (..., 2 * width) or (..., 3 * width)."""
    h = activate(z[..., :width], activation)
    t = jax.nn.sigmoid(z[..., width : 2 * width])
    c = jax.nn.sigmoid(z[..., 2 * width :]) if z.shape[-1] == 3 * width else None
    return h, t, c


def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return x @ kernel + bias


# The whole stack. `cell(x, z, *choices)` is static; `choices` are integers that it may be traced over.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _affine_stack(cell: Cell, x: jax.Array, kernel: jax.Array, bias: jax.Array, *choices: Any) -> jax.Array:
    return lax.scan(lambda x, weights: (cell(x, _affine(x, *weights), *choices), None), x, (kernel, bias))[0]


def _affine_stack_fwd(cell, x, kernel, bias, *choices):
    def layer(x, weights):
        y, cell_vjp = jax.vjp(lambda x, z: cell(x, z, *choices), x, _affine(x, *weights))
        return y, (x, cell_vjp)

    y, (inputs, cell_vjps) = lax.scan(layer, x, (kernel, bias))
    return y, (inputs, cell_vjps, kernel, choices)


def _affine_stack_bwd(cell, residuals, dy):
    inputs, cell_vjps, kernel, choices = residuals

    def layer(dy, layer_residuals):
        cell_vjp, kernel = layer_residuals
        dx, dz = cell_vjp(dy)
        return dx + dz @ kernel.T, dz

    dx, dz = lax.scan(layer, dy, (cell_vjps, kernel), reverse=True)
    dkernel = jnp.einsum("lbi,lbo->lio", inputs, dz)
    return dx, dkernel, dz.sum(axis=1), *(None for _ in choices)


_affine_stack.defvjp(_affine_stack_fwd, _affine_stack_bwd)


# The cells. Each keeps x, h and t (and c) for its backward pass: all that Eq. 9 needs, and, because the
# derivatives of relu, tanh and sigmoid follow from their outputs, all that the chain rule needs too.


@jax.custom_vjp
def _highway_cell(x, z, activation):
    return _highway_cell_fwd(x, z, activation)[0]


def _highway_cell_fwd(x, z, activation):
    h, t, c = split_gates(z, x.shape[-1], activation)
    return highway(x, h, t, c), (x, h, t, c, activation)


def _highway_cell_bwd(residuals, dy):
    x, h, t, c, activation = residuals
    dx, dh, *dgates = highway_vjp(x, h, t, dy) if c is None else independent_vjp(x, h, t, c, dy)
    gates = (t,) if c is None else (t, c)
    dz = [dh * slope(h, activation), *(dg * g * (1 - g) for dg, g in zip(dgates, gates, strict=True))]
    return dx, jnp.concatenate(dz, axis=-1), None


_highway_cell.defvjp(_highway_cell_fwd, _highway_cell_bwd)


@jax.custom_vjp
def _plain_cell(x, z, activation):
    return activate(z, activation)


def _plain_cell_fwd(x, z, activation):
    h = activate(z, activation)
    return h, (h, activation)


def _plain_cell_bwd(residuals, dy):
    h, activation = residuals
    return jnp.zeros_like(h), dy * slope(h, activation), None


_plain_cell.defvjp(_plain_cell_fwd, _plain_cell_bwd)


# With an arbitrary activation function the cells are differentiated automatically.


def _apply(activation, x, z):
    return activation(z)


def _gated(activation, x, z):
    return highway(x, *split_gates(z, x.shape[-1], activation))
