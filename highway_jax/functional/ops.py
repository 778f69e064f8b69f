"""The highway operation and its gradient (Appendix A of the paper)."""

import jax
import jax.numpy as jnp
import numpy as np


def highway(x: jax.Array, h: jax.Array, t: jax.Array, c: jax.Array | None = None) -> jax.Array:
    """Mix a transformed input with the input itself: `h * t + x * c` (Eq. 2 and 7).

    The carry gate defaults to `c = 1 - t` (Eq. 3 and 8). Derivatives of any order exist in both forward and reverse
    mode. The gradient is that of the paper (Eq. 9); only the arguments are kept for it.

    Args:
      x: the input of the layer, of any shape.
      h: the block state H(x), of the same shape.
      t: the transform gate T(x), of the same shape, usually in (0, 1).
      c: the carry gate C(x), of the same shape, or None for `1 - t`.

    Returns:
      The block output y, of the same shape and of the promoted dtype of the arguments.

    Raises:
      ValueError: if the shapes differ.

    Example:
      ```python
      y = highway_jax.highway(x, jnp.tanh(x @ w_h + b_h), jax.nn.sigmoid(x @ w_t + b_t))
      ```
    """
    args = _arguments(x, h, t, c)
    operation = _coupled if c is None else _independent
    return jax.checkpoint(operation, prevent_cse=False)(*args)  # otherwise 1 - t would be kept too


def explicit_highway(x: jax.Array, h: jax.Array, t: jax.Array, c: jax.Array | None = None) -> jax.Array:
    """`highway` as a `jax.custom_vjp` that computes Eq. 9, for the cells of stacks. It has no forward mode."""
    args = _arguments(x, h, t, c)
    return (_explicit_coupled if c is None else _explicit_independent)(*args)


def _arguments(x, h, t, c):
    """Check that the arguments have one shape, and convert them to one dtype."""
    gates = (x, h, t) if c is None else (x, h, t, c)
    if any(jnp.shape(a) != jnp.shape(x) for a in gates):
        given = ", ".join(f"{name} {jnp.shape(a)}" for name, a in zip("xhtc", gates, strict=False))
        raise ValueError(f"highway needs arrays of one shape, but got {given}")
    dtype = jnp.result_type(*gates)
    return [jnp.asarray(a, dtype) for a in gates]


def resize(x: jax.Array, features: int, strides: int = 1) -> jax.Array:
    """Change the size of a representation by sub-sampling and zero-padding (x-hat in Section 2.1).

    Args:
      x: `(..., n)`, or `(batch, *spatial, n)` with strides.
      features: the new size of the last axis. If it is larger than n, zeros are appended; if it is smaller, evenly
        spaced values are taken.
      strides: the step between the values that are kept along each spatial axis, starting with the first.

    Returns:
      `(..., features)`, or `(batch, *spatial', features)` with spatial' = ceil(spatial / strides).
    """
    n = x.shape[-1]
    if strides != 1:
        x = x[:, *(slice(None, None, strides),) * (x.ndim - 2)]
    if features > n:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, features - n)])
    return x if features == n else x[..., np.arange(features, dtype=np.int64) * n // features]


def highway_vjp(x: jax.Array, h: jax.Array, t: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the cotangents (dx, dh, dt) of the coupled operation (Eq. 9); all arrays have the same shape."""
    return (1 - t) * dy, t * dy, (h - x) * dy


def independent_vjp(
    x: jax.Array, h: jax.Array, t: jax.Array, c: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return the cotangents (dx, dh, dt, dc) with an independent carry gate (Eq. 7); all arrays have the same shape."""
    return c * dy, t * dy, h * dy, x * dy


def _coupled(x, h, t):
    return h * t + x * (1 - t)


def _independent(x, h, t, c):
    return h * t + x * c


def _coupled_fwd(*args):
    return _coupled(*args), args


def _coupled_bwd(args, dy):
    x, h, t = args
    return highway_vjp(x, h, t, dy)


def _independent_fwd(*args):
    return _independent(*args), args


def _independent_bwd(args, dy):
    x, h, t, c = args
    return independent_vjp(x, h, t, c, dy)


_explicit_coupled, _explicit_independent = jax.custom_vjp(_coupled), jax.custom_vjp(_independent)
_explicit_coupled.defvjp(_coupled_fwd, _coupled_bwd)
_explicit_independent.defvjp(_independent_fwd, _independent_bwd)
