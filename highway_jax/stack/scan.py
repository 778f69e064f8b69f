"""Many layers of one kind as a single scan, with an explicit backward pass.

Every layer here has its weights in one affine map, `z = x @ kernel + bias`, followed by a kind's elementwise
cell. For a highway layer z holds H's and T's pre-activations side by side. That shape
is what makes the stack fast: one matrix product a layer forward, one backward, and the gradients of all
layers' weights as one batched product after the backward scan, from the layers' inputs; on a TPU inside the scan.
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
    """Apply layers of one kind one after another.

    Args:
      kind: the kind.
      x: (..., width).
      kernel: (layers, width, parts * width), the columns of the kind's affine maps side by side.
      bias: (layers, parts * width).
      activation: see `highway_jax.functional.activations`.
      transform_bias: the run's; a constant, to which there is no gradient.
      remat: compute the layers once more in the backward pass, about sqrt(layers) at a time, instead of
        keeping what it needs of all of them: memory grows with sqrt(layers).
      implementation: "xla", or "fused": the kernels of `stack.fused`, on a CPU for what is differentiated, on an NVIDIA
        GPU that can build it for everything, and XLA elsewhere. Put one `jax.jit` around a gradient: in separate
        programs the forward one returns what any of them would keep. A gradient has no further derivative, and cannot
        be exported for such a platform. Devices that share a batch each compute all of it. Whether a GPU can build the
        kernel is asked when `stack` is traced; of several processes either all must be able to, or none.

    Returns:
      (..., width). There is no forward mode: `jax.jvp`, `jax.linearize` and `jax.jacfwd` raise TypeError. There are
      second derivatives with "xla": `jax.hessian`, a gradient's gradient, and its `jax.jvp`.

    Raises:
      ValueError: for an unknown implementation, or if "fused" cannot compute this.
      fused.Unavailable: for the gradients of "fused" on a CPU that cannot build it.
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
    """Look inside a stack: everything that its kind's cell computes of `x`, by name, each (layers, ..., width).

    Takes `stack`'s arguments, and has no forward mode either.
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
    """Layers recomputed at once, such that fewest are kept: they, the segments' inputs, and all that is over."""
    return min(range(1, layers + 1), key=lambda size: size + layers // size + layers % size)


def _split_activation(activation: Activation) -> tuple[Function | None, Any]:
    """A function, which is static, or an index, which may be traced."""
    choice = canonical(activation)
    return (choice, 0) if callable(choice) else (None, choice)


def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return x @ kernel + bias


# What goes from layer to layer: x itself, or a tuple of arrays like x of which the affine maps read the first.


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


# The whole stack. The kind and a function are static; an index and the transform bias may be traced, which a
# custom_vjp function must be given as arguments.


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
    # Devices that share a batch would add up the gradients of every layer by itself: a message a layer, not one a step.
    return lax.cond(_partitioned.bind(), _gradients_after, _gradients_inside, kept, dstate)


# Whether the compiler divides a program among devices. It is a constant, but one that is known where the program is
# lowered, not where it is traced.
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
    """The backward pass, with the gradients of all weights after its scan: one batched product, from every dz."""
    inputs, residuals, kernel, choices = kept

    def layer(dstate, kept):
        x, residuals, kernel = kept
        dstate, dz = residuals.pullback((x, *choices))(dstate)
        return _plus(dstate, dz @ kernel.T), dz

    dstate, dz = lax.scan(layer, dstate, (inputs, residuals, kernel), reverse=True)
    return dstate, jnp.einsum("lbi,lbo->lio", inputs, dz), dz.sum(axis=1)


def _gradients_inside(kept, dstate):
    """The same as suits a TPU's compiler: with the gradients of a layer's weights inside the scan, and no dz kept."""
    *stacked, choices = kept
    layers = len(stacked[0])

    # What a loop writes in ascending order, the compiler does not fill with zeros before it.
    def layer(carry, _):
        dstate, number = carry
        x, residuals, kernel = jax.tree.map(partial(lax.dynamic_index_in_dim, index=number, keepdims=False), stacked)
        dstate, dz = residuals.pullback((x, *choices))(dstate)
        dz = lax.optimization_barrier(dz)  # or it would be computed for each of the products, in a wasteful layout
        # A column of ones makes the sum over the examples, the bias's gradient, a part of the product.
        dweights = jnp.pad(x, ((0, 0), (0, 1)), constant_values=1).T @ dz
        return (_plus(dstate, dz @ kernel.T), number - 1), dweights

    (dstate, _), dweights = lax.scan(layer, (dstate, jnp.int32(layers - 1)), length=layers)
    return dstate, dweights[::-1, :-1], dweights[::-1, -1]


def _plus(dstate, dx):
    return (dstate[0] + dx, *dstate[1:]) if isinstance(dstate, tuple) else dstate + dx


_layers.defvjp(_layers_fwd, _layers_bwd)


# The same, but trained with a fused kernel. What is not differentiated needs nothing kept, and may be of one example
# at a time; on a CPU that is XLA's.


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
    """What a cell's backward pass needs, without what is there anyway: most keep their input, as the stack does."""

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
