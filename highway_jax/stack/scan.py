"""A stack of layers of one kind as a single scan, with an explicit backward pass.

A layer is an affine map, `z = x @ kernel + bias`, followed by the elementwise cell of its kind. In a highway layer, z
holds the pre-activations of H and T side by side. The stack is fast because each layer needs one matrix product forward
and one backward, and the gradients of the weights of all layers are one batched product after the backward scan. On a
TPU, these gradients are computed inside the scan.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from highway_jax.functional.activations import Activation, Function, canonical, indexed
from highway_jax.native import check_implementation
from highway_jax.stack import fused
from highway_jax.stack.kinds import Kind, States


def stack(
    kind: Kind,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    activation: Activation,
    transform_bias: float | jax.Array = 0.0,
    remat: bool = False,
    implementation: str = "xla",
) -> jax.Array:
    """Apply a stack of layers of one kind.

    Forward-mode differentiation is not supported: `jax.jvp`, `jax.linearize` and `jax.jacfwd` raise a `TypeError`.
    Second derivatives are supported by "xla": `jax.hessian`, and the gradient or the `jax.jvp` of a gradient.

    "fused" uses the kernels of `stack.fused`: on a CPU for differentiated computations, on an NVIDIA GPU for all of
    them. On other platforms, and on GPUs for which the kernel cannot be built, it uses XLA. It has these limits:

    - A gradient should be inside one `jax.jit`. Otherwise, the forward program returns everything that either
      implementation would keep.
    - Gradients have no further derivatives, and cannot be exported for a platform with a kernel.
    - Devices that share a batch each compute the whole batch.
    - Whether a GPU's kernel can be built is decided when `stack` is traced. If there are several processes, it must be
      possible in all of them or in none.

    Args:
      kind: the kind of layer.
      x: the input, `(..., width)`.
      kernel: `(layers, width, parts * width)`, with the columns of the kind's affine maps side by side.
      bias: `(layers, parts * width)`.
      activation: see `highway_jax.functional.activations`.
      transform_bias: the transform bias of the run, which has no gradient.
      remat: whether to compute the layers again in the backward pass, about sqrt(layers) at a time, so that memory
        grows with sqrt(layers).
      implementation: "xla" or "fused".

    Returns:
      The output, `(..., width)`.

    Raises:
      ValueError: if the implementation is unknown, or "fused" cannot compute this stack.
      fused.Unavailable: if "fused" computes gradients on a CPU for which the kernel cannot be built.
    """
    function, index = _split_activation(activation)
    shape, x = x.shape, _flat(x)
    state = _start(kind, x)
    run = partial(_layers, kind, function)
    check_implementation(implementation)
    if implementation == "fused":
        if function is not None:
            raise ValueError("implementation is 'fused'; its activation must be relu or tanh, not a function")
        state, kernel, bias, index = *map(jnp.asarray, (x, kernel, bias)), jnp.asarray(index, jnp.int32)
        fused.check(kind, state, kernel, bias, index)
        kernels = {fused.CPU: partial(_fused, fused.CPU, kind)}
        if x.size and fused.usable(fused.GPU, x.shape[-1]):
            kernels[fused.GPU] = partial(_fused, fused.GPU, kind)
        run = partial(lax.platform_dependent, **kernels, default=run)
    choices, layers = (index, transform_bias), len(kernel)
    if not layers:
        return x.reshape(shape)
    if not remat:
        return _output(run(state, kernel, bias, *choices)).reshape(shape)
    size = _segment(layers)
    if first := layers % size:
        state = run(state, kernel[:first], bias[:first], *choices)

    @partial(jax.checkpoint, prevent_cse=False)
    def segment(state, weights):
        return run(state, *weights, *choices), None

    segments = [leaf[first:].reshape(-1, size, *leaf.shape[1:]) for leaf in (kernel, bias)]
    return _output(lax.scan(segment, state, segments)[0]).reshape(shape)


def states(
    kind: Kind,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    activation: Activation,
    transform_bias: float | jax.Array = 0.0,
) -> States:
    """Return the inner states of a stack.

    Forward-mode differentiation is not supported.

    Args:
      kind: as for `stack`.
      x: as for `stack`.
      kernel: as for `stack`.
      bias: as for `stack`.
      activation: as for `stack`.
      transform_bias: as for `stack`.

    Returns:
      Everything that the kind's cell returns, by name, each of shape `(layers, ..., width)`.
    """
    function, index = _split_activation(activation)

    def layer(state, weights):
        found = _cell(kind, function, state, _affine(_output(state), *weights), index, transform_bias)
        return _carried(kind, found), found

    found = lax.scan(layer, _start(kind, _flat(x)), (kernel, bias))[1]
    return {name: value.reshape(len(kernel), *x.shape) for name, value in found.items()}


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _segment(layers: int) -> int:
    """The number of layers in a segment that minimizes what is kept: a segment, all their inputs, and the remainder."""
    return min(range(1, layers + 1), key=lambda size: size + layers // size + layers % size)


def _split_activation(activation: Activation) -> tuple[Function | None, Any]:
    """Split an activation into a function, which is static, and an index, which may be traced."""
    choice = canonical(activation)
    return (choice, 0) if callable(choice) else (None, choice)


def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return x @ kernel + bias


# The state between layers is x itself, or a tuple of arrays like x, of which the affine maps read the first.


def _start(kind: Kind, x: jax.Array) -> Any:
    return x if len(kind.carries) == 1 else (x,) * len(kind.carries)


def _output(state: Any) -> jax.Array:
    return state[0] if isinstance(state, tuple) else state


def _carried(kind: Kind, found: States) -> Any:
    values = tuple(found[name] for name in kind.carries)
    return values if len(values) > 1 else values[0]


def _cell(kind: Kind, function: Function | None, state: Any, z: jax.Array, index: Any, transform_bias: Any) -> States:
    names = kind.biases(0.0)
    parts = dict(zip(names, jnp.split(z, len(names), axis=-1), strict=True))
    return kind.cell(state, parts, function or partial(indexed, index=index), transform_bias)


# The whole stack. The kind and a function are static. An index and the transform bias may be traced, so the custom_vjp
# function must receive them as arguments.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layers(kind: Kind, function: Any, state: Any, kernel: jax.Array, bias: jax.Array, *choices: Any) -> Any:
    def layer(state, weights):
        return _carried(kind, _cell(kind, function, state, _affine(_output(state), *weights), *choices)), None

    return lax.scan(layer, state, (kernel, bias))[0]


def _layers_fwd(kind, function, state, kernel, bias, *choices):
    def layer(state, weights):
        x = _output(state)

        def cell(state, z):
            return _carried(kind, _cell(kind, function, state, z, *choices))

        state, pullback = jax.vjp(cell, state, _affine(x, *weights))
        return state, (x, _Residuals.of(pullback, (x, *choices)))

    state, (inputs, residuals) = lax.scan(layer, state, (kernel, bias))
    return state, (inputs, residuals, kernel, choices)


def _layers_bwd(kind, function, kept, dstate):
    gradients = lax.platform_dependent(kept, dstate, tpu=_gradients_on_tpu, default=_gradients_after)
    return *gradients, *(None for _ in kept[-1])


def _gradients_on_tpu(kept, dstate):
    # Inside the scan, devices that share a batch would sum the gradients of each layer in a collective of its own.
    return lax.cond(_partitioned.bind(), _gradients_after, _gradients_inside, kept, dstate)


# Whether the compiler divides a program among devices: a constant that is known when the program is lowered, but not
# when it is traced.
_partitioned = Primitive("partitioned")
_partitioned.def_impl(lambda: np.True_)
_partitioned.def_abstract_eval(lambda: jax.core.ShapedArray((), np.bool_))


def _lower_partitioned(ctx):
    context = ctx.module_context.axis_context
    if hasattr(context, "mesh"):
        devices = math.prod(size for axis, size in context.mesh.shape.items() if axis not in context.manual_axes)
    else:
        devices = context.num_devices
    return [mlir.ir_constant(np.bool_(devices > 1))]


mlir.register_lowering(_partitioned, _lower_partitioned)


def _gradients_after(kept, dstate):
    """The backward pass, with the gradients of all weights as one batched product after its scan."""
    inputs, residuals, kernel, choices = kept

    def layer(dstate, kept):
        x, residuals, kernel = kept
        dstate, dz = residuals.pullback((x, *choices))(dstate)
        return _plus(dstate, dz @ kernel.T), dz

    dstate, dz = lax.scan(layer, dstate, (inputs, residuals, kernel), reverse=True)
    return dstate, jnp.einsum("lbi,lbo->lio", inputs, dz), dz.sum(axis=1)


def _gradients_inside(kept, dstate):
    """The backward pass for a TPU's compiler, with the gradients of the weights inside the scan, so no dz is kept."""
    *stacked, choices = kept
    layers = len(stacked[0])

    # Since the loop writes its results in ascending order, the compiler does not fill the array with zeros first.
    def layer(carry, _):
        dstate, number = carry
        x, residuals, kernel = jax.tree.map(partial(lax.dynamic_index_in_dim, index=number, keepdims=False), stacked)
        dstate, dz = residuals.pullback((x, *choices))(dstate)
        dz = lax.optimization_barrier(dz)  # otherwise, each product would compute dz again, in a wasteful layout
        # With a column of ones, the product includes the sum over the examples, which is the gradient of the bias.
        dweights = jnp.pad(x, ((0, 0), (0, 1)), constant_values=1).T @ dz
        return (_plus(dstate, dz @ kernel.T), number - 1), dweights

    (dstate, _), dweights = lax.scan(layer, (dstate, jnp.int32(layers - 1)), length=layers)
    return dstate, dweights[::-1, :-1], dweights[::-1, -1]


def _plus(dstate, dx):
    return (dstate[0] + dx, *dstate[1:]) if isinstance(dstate, tuple) else dstate + dx


_layers.defvjp(_layers_fwd, _layers_bwd)


# The stack with a fused kernel. Without differentiation, nothing is kept, and the batch may be a single example; on a
# CPU, XLA computes this case.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(platform: str, kind: Kind, state: jax.Array, kernel: jax.Array, bias: jax.Array, *choices: Any) -> jax.Array:
    if platform == fused.CPU:
        return _layers(kind, None, state, kernel, bias, *choices)
    return fused.forward(platform, state, kernel, bias, choices[0], keep=False)[0]


def _fused_fwd(platform, kind, state, kernel, bias, *choices):
    index, _ = choices
    y, kept = fused.forward(platform, state, kernel, bias, index)
    return y, (kept, kernel, choices)


def _fused_bwd(platform, kind, residuals, dy):
    kept, kernel, choices = residuals
    return *fused.backward(platform, dy, kernel, choices[0], kept), *(None for _ in choices)


_fused.defvjp(_fused_fwd, _fused_bwd)


@struct.dataclass
class _Residuals:
    """The residuals of a cell's backward pass, without the cell's input, which the stack keeps anyway."""

    leaves: list[jax.Array]
    layout: Any = struct.field(pytree_node=False)

    @classmethod
    def of(cls, pullback: Any, known: Sequence[Any]) -> "_Residuals":
        leaves, tree = jax.tree.flatten(pullback)
        places = tuple(next((i for i, k in enumerate(known) if k is leaf), None) for leaf in leaves)
        return cls([leaf for leaf, place in zip(leaves, places, strict=True) if place is None], (tree, places))

    def pullback(self, known: Sequence[Any]) -> Any:
        tree, places = self.layout
        leaves = iter(self.leaves)
        return jax.tree.unflatten(tree, [next(leaves) if place is None else known[place] for place in places])
