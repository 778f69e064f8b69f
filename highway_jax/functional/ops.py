"""The highway operation (paper, Appendix A)."""

import jax
import jax.numpy as jnp
import numpy as np


def highway(x: jax.Array, h: jax.Array, t: jax.Array, c: jax.Array | None = None) -> jax.Array:
    """Mix a transformed input with the input itself: `h * t + x * c` (Eq. 2 and 7).

    The carry gate is `c = 1 - t` where it is not given (Eq. 3 and 8). All derivatives exist, of any order and in
    both modes. A gradient is the paper's (Eq. 9) and keeps nothing but the arguments.

    Args:
      x: the layer's input, of any shape.
      h: the block state H(x), of the same shape.
      t: the transform gate T(x), of the same shape, usually in (0, 1).
      c: the carry gate C(x), of the same shape, or None for `1 - t`.

    Returns:
      The block output y, of the same shape; its dtype is the arguments' promoted dtype.

    Raises:
      ValueError: if the shapes differ.
    """
    args = _arguments(x, h, t, c)
    operation = _coupled if c is None else _independent
    return jax.checkpoint(operation, prevent_cse=False)(*args)  # or 1 - t would be kept too


def explicit_highway(x: jax.Array, h: jax.Array, t: jax.Array, c: jax.Array | None = None) -> jax.Array:
    """`highway` with Eq. 9 written out, for the cells of stacks. Reverse mode only: it is a `jax.custom_vjp`."""
    args = _arguments(x, h, t, c)
    return (_explicit_coupled if c is None else _explicit_independent)(*args)


def _arguments(x, h, t, c):
    """In one dtype."""
    gates = (x, h, t) if c is None else (x, h, t, c)
    if any(jnp.shape(a) != jnp.shape(x) for a in gates):
        given = ", ".join(f"{name} {jnp.shape(a)}" for name, a in zip("xhtc", gates, strict=False))
        raise ValueError(f"highway needs arrays of one shape, but got {given}")
    dtype = jnp.result_type(*gates)
    return [jnp.asarray(a, dtype) for a in gates]


def resize(x: jax.Array, features: int, strides: int = 1) -> jax.Array:
    """Change the size of a representation by sub-sampling and zero-padding (x-hat of Section 2.1).

    Args:
      x: (..., n), or (batch, *spatial, n) with strides.
      features: size of the last axis: zeros follow x's n values, or evenly spaced ones of them are taken.
      strides: keep every so manieth value of each spatial axis, the first included.

    Returns:
      (..., features), or (batch, *spatial', features) with spatial' = ceil(spatial / strides).
    """
    n = x.shape[-1]
    if strides != 1:
        x = x[:, *(slice(None, None, strides),) * (x.ndim - 2)]
    if features > n:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, features - n)])
    return x if features == n else x[..., np.arange(features, dtype=np.int64) * n // features]


def highway_vjp(x: jax.Array, h: jax.Array, t: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents (dx, dh, dt) of the coupled operation (Eq. 9); all arrays of one shape."""
    return (1 - t) * dy, t * dy, (h - x) * dy


def independent_vjp(
    x: jax.Array, h: jax.Array, t: jax.Array, c: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Cotangents (dx, dh, dt, dc) with an independent carry gate (from Eq. 7); all arrays of one shape."""
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
