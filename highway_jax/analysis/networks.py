"""What a trained highway network does inside: gates, routing, lesions, depth in use (Section 4).

Pure functions of (model, params, data) for any Linen module that contains highway layers: an `MLP`, also of a `Kind`
that has a transform gate, a `ConvNet`, or a network of one's own of `HighwayDense`, `HighwayConv` and `Highway`, with
`nn.scan` or without. Results are NumPy arrays with one row per highway layer, in the order in which the network calls
them. A highway layer inside another one's gate is part of that gate and has no row. Feature maps are averaged over
space, as is any axis between batch and blocks. Where layers differ in width, a narrow layer's row ends in NaN, and what
a layer does not have is NaN. Images are given as stored; `preprocess` turns them into the network's input.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.sharding import Mesh

from highway_jax import parallel
from highway_jax.data import Array, Split
from highway_jax.functional.classification import cross_entropy
from highway_jax.linen.layers import CLOSED, Gated

Preprocess = Callable[[Array], Array]
Path = tuple[str, ...]


class InnerStates(NamedTuple):
    """What every block of every highway layer does with one sample; each of shape (layers, blocks)."""

    block_state: np.ndarray
    transform_gate: np.ndarray
    carry_gate: np.ndarray
    block_output: np.ndarray


class GateStatistics(NamedTuple):
    """The transform gates over a dataset (Figures 2 and 3).

    Attributes:
      bias: (layers, blocks) the gates' biases b_T; NaN where none can be read from the parameters.
      mean: (layers, blocks) their mean output over all samples.
      class_mean: (classes, layers, blocks) their mean output over each class; NaN for a class without samples.
      class_size: (classes,) number of samples.
      open_layers: (n,) how many layers' worth of transformation each sample gets: the sum over layers of its
        gates' mean output over the layer's blocks, from 0 to the number of layers.
    """

    bias: np.ndarray
    mean: np.ndarray
    class_mean: np.ndarray
    class_size: np.ndarray
    open_layers: np.ndarray

    @property
    def routing(self) -> np.ndarray:
        """(classes, layers, blocks): how far each class's mean is from the overall one (Figure 3)."""
        return self.class_mean - self.mean


class Lesions(NamedTuple):
    """A network's performance with one layer at a time made the identity (Section 4.2, Figure 4).

    Attributes:
      loss: (layers,) mean cross entropy (nats) without this layer.
      error: (layers,) fraction of samples misclassified without this layer; NaN where the loss is not finite.
      intact_loss, intact_error: the whole network's.
    """

    loss: np.ndarray
    error: np.ndarray
    intact_loss: float
    intact_error: float

    @property
    def order(self) -> np.ndarray:
        """(layers,) layer indices, the one whose lesion raises the loss least first."""
        return np.argsort(self.loss, kind="stable")

    @property
    def damage(self) -> np.ndarray:
        """(layers,) how much each lesion raises the loss (nats); 0 where it lowers it, or by next to nothing."""
        rise = self.loss - self.intact_loss
        # float32's rounding alone makes a loss differ in its fifth or sixth digit.
        return np.where(rise <= 1e-4 * self.intact_loss, 0, rise)


class Dropped(NamedTuple):
    """A network's performance with several layers at once made the identity.

    Attributes:
      order: (layers,) layer indices in the order in which they were dropped.
      loss: (layers + 1,) mean cross entropy (nats) without the first k of them, k = 0 to all.
      error: (layers + 1,) fraction of samples misclassified; NaN where the loss is not finite.
    """

    order: np.ndarray
    loss: np.ndarray
    error: np.ndarray


def gate_statistics(
    model: nn.Module,
    params: Any,
    split: Split,
    *,
    preprocess: Preprocess = jnp.asarray,
    batch_size: int = 1000,
) -> GateStatistics:
    """Biases and activity of a network's transform gates: overall, per class, per sample.

    Args:
      model, params: the network and its `params` collection.
      split: n samples.
      preprocess: turns stored images into the network's input.
      batch_size: samples taken at a time, which bounds memory.

    Raises:
      ValueError: if the model has no highway layers.
    """
    found = _find(model, params, _inputs(split["x"], preprocess))
    num_classes = int(np.max(split["y"])) + 1

    def step(sums, batch):
        gates = [state["transform_gate"] for state in _states(model, params, preprocess(batch["x"]), found)]
        of_class = jax.nn.one_hot(batch["y"], num_classes)  # all zero for a sample that only fills up the batch

        def add(total, gate):
            known = jnp.isfinite(gate)  # of a NaN, another class's zero would make a NaN
            values, unknown = (
                jnp.einsum("nc,nb->cb", of_class, of_gate, precision="float32")
                for of_gate in (jnp.where(known, gate, 0), 1 - known.astype(gate.dtype))
            )
            return total + jnp.where(unknown > 0, jnp.nan, values)

        return jax.tree.map(add, sums, gates), sum(gate.mean(axis=-1) for gate in gates)

    biases = [bias for layers in found for bias in layers.biases(params)]
    start = [jnp.zeros((num_classes, len(bias))) for bias in biases]
    sums, open_layers = jax.jit(lambda batches: lax.scan(step, start, batches))(_batches(split, batch_size))
    by_class = np.stack([_table(layers) for layers in zip(*sums, strict=True)])
    size = np.bincount(split["y"], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        class_mean = by_class / size[:, None, None]
    return GateStatistics(
        bias=_table(biases),
        mean=by_class.sum(axis=0) / size.sum(),
        class_mean=class_mean,
        class_size=size,
        open_layers=np.asarray(open_layers).reshape(-1)[: size.sum()],
    )


def inner_states(model: nn.Module, params: Any, image: Array, *, preprocess: Preprocess = jnp.asarray) -> InnerStates:
    """Gates and block outputs for a single sample (Figure 2, right half).

    Args:
      model, params, preprocess: as in `gate_statistics`.
      image: (height, width, channels), or whatever shape one sample has.

    Raises:
      ValueError: if the model has no highway layers.
    """
    images = np.asarray(image)[None]
    found = _find(model, params, _inputs(images, preprocess))
    states = jax.jit(lambda images: _states(model, params, preprocess(images), found))(images)
    nothing = [jnp.full_like(state["transform_gate"], jnp.nan) for state in states]
    return InnerStates(
        *(
            _table([state.get(name, nan)[0] for state, nan in zip(states, nothing, strict=True)])
            for name in InnerStates._fields
        )
    )


def lesion(
    model: nn.Module,
    params: Any,
    split: Split,
    *,
    preprocess: Preprocess = jnp.asarray,
    batch_size: int = 100,
    mesh: Mesh | None = None,
) -> Lesions:
    """Close all the transform gates of one layer, for every layer, and evaluate the network (Figure 4).

    All lesions are one compiled call, split over the mesh's devices. A device takes its share of them through a batch
    in lockstep: memory grows with `batch_size` times lesions per device.

    Args:
      model, params, split, preprocess: as in `gate_statistics`.
      batch_size: samples taken at a time.
      mesh: from `parallel.runs_mesh`; all devices by default.

    Raises:
      ValueError: if the model has no highway layers, one of them cannot be closed, or its outputs are not logits.
    """
    layers = sum(layers.count for layers in _find(model, params, _inputs(split["x"], preprocess)))
    closed = np.eye(layers + 1, layers, dtype=bool)  # the last row is the whole network
    loss, error = _evaluate(model, params, split, closed, preprocess, batch_size, mesh)
    return Lesions(loss[:-1], error[:-1], float(loss[-1]), float(error[-1]))


def drop_layers(
    model: nn.Module,
    params: Any,
    split: Split,
    order: Sequence[int] | np.ndarray,
    *,
    preprocess: Preprocess = jnp.asarray,
    batch_size: int = 100,
    mesh: Mesh | None = None,
) -> Dropped:
    """Close the gates of more and more layers and evaluate the network each time.

    Args:
      model, params, split, preprocess, batch_size, mesh: as in `lesion`, which it equals in cost.
      order: layer indices, the first to be dropped first: `Lesions.order`, say.

    Raises:
      ValueError: as in `lesion`, or if `order` is not a permutation of the layers.
    """
    layers = sum(layers.count for layers in _find(model, params, _inputs(split["x"], preprocess)))
    order = np.asarray(order)
    if sorted(order.tolist()) != list(range(layers)):
        raise ValueError(f"order is {order.tolist()}; it must hold each of the layers 0 to {layers - 1} once")
    closed = np.argsort(order) < np.arange(layers + 1)[:, None]
    loss, error = _evaluate(model, params, split, closed, preprocess, batch_size, mesh)
    return Dropped(order, loss, error)


def effective_layers(damage: np.ndarray) -> float:
    """How many layers matter, from what each one's lesion costs: the exponential of the entropy of their shares.

    With p_l the l-th layer's share of the total damage, it is exp(-sum_l p_l log p_l): k where k layers do equal damage
    and the others none. 0 if there is no damage; NaN if some damage is not finite.

    Args:
      damage: (layers,) at least 0, as `Lesions.damage`.
    """
    if not damage.any():
        return 0.0
    share = damage / damage.sum()
    return float(np.exp(-np.sum(share * np.log(np.where(share == 0, 1, share)))))


def close_gates(model: nn.Module, params: Any, inputs: Any, closed: Array) -> Any:
    """Make highway layers the identity: T = 0 exactly, and C = 1 where the carry gate is independent (Eq. 4).

    A layer that changes its input's size still does, by zero-padding or sub-sampling alone.

    Args:
      model, params: the network and its parameters.
      inputs: a batch of the network's input, of which only shape and dtype matter.
      closed: (layers,) bool, which layers; may be traced, so that lesions can be mapped.

    Returns:
      The parameters, of which biases have changed: to minus infinity for T, to infinity for C. A `Highway` with a T or
      C of its own, which need not have biases, gets a further parameter instead, `closed`.

    Raises:
      ValueError: if the model has no highway layers, or one of them cannot be closed.
    """
    flat, first = dict(flatten_dict(params)), 0
    for layers in _find(model, params, inputs):
        here = jnp.asarray(closed)[first : first + layers.count].reshape(layers.leading)
        first += layers.count
        flat |= {(*layers.path, *rest): leaf for rest, leaf in flatten_dict(layers.closing(params, here)).items()}
    return unflatten_dict(flat)


# A network's highway layers are found where they sow their states, and known by their modules' paths. A module may hold
# one layer (`HighwayDense`) or a stack of them with a leading axis on every parameter (`MLP`, `nn.scan`).


@dataclasses.dataclass(frozen=True)
class _Layers:
    """The highway layers of one module.

    Attributes:
      path: the module's.
      module: which it is.
      leading: what stacks them in front of the batch, (layers,) or nothing.
      blocks: of each.
    """

    path: Path
    module: nn.Module
    leading: tuple[int, ...]
    blocks: int

    @property
    def count(self) -> int:
        return math.prod(self.leading)

    def biases(self, params: Any) -> jax.Array:
        """Of the transform gates, (count, blocks)."""
        shape, bias = (self.count, self.blocks), self._gates.gate_bias(self._own(params))
        return jnp.full(shape, jnp.nan) if bias is None or bias.size != math.prod(shape) else bias.reshape(shape)

    def closing(self, params: Any, closed: jax.Array) -> Any:
        """What becomes of the module's parameters where layers are closed."""
        try:
            return self._gates.closing(self._own(params), closed)
        except ValueError as error:
            raise ValueError(f"layer {'/'.join(self.path)!r} cannot be closed: {error}") from None

    @property
    def _gates(self) -> Gated:
        return self.module if isinstance(self.module, Gated) else Gated()  # a module of one's own

    def _own(self, params: Any) -> Any:
        for key in self.path:
            params = params.get(key, {})
        return params


def _find(model: nn.Module, params: Any, inputs: Any) -> list[_Layers]:
    """The modules that hold highway layers, in the order of their calls."""
    order: dict[Path, int] = {}
    called: dict[Path, tuple[nn.Module, int]] = {}

    def note(call, args, kwargs, context):
        path = context.module.path
        order.setdefault(path, len(order))
        y = call(*args, **kwargs)
        arrays = [leaf for leaf in jax.tree.leaves(y) if isinstance(leaf, jax.Array)]
        if arrays and (path not in called or context.method_name == "__call__"):
            called[path] = context.module, arrays[0].ndim  # less than what is sown has, if that is of a scan
        return y

    def trace(params, inputs):
        with nn.intercept_methods(note):
            return model.apply({"params": params}, inputs, mutable="intermediates")[1]

    sown = flatten_dict(jax.eval_shape(trace, params, inputs).get("intermediates", {}))
    holders = [path[:-1] for path in sown if path[-1] == "transform_gate"]
    gates = {(*path, name) for path in holders for name in CLOSED}
    holders = [path for path in holders if not any(path[:depth] in gates for depth in range(len(path) + 1))]
    # A traced function's dicts come back with sorted keys, "layer10" before "layer2"; its calls are in order.
    paths = sorted(holders, key=order.__getitem__)
    if not paths:
        raise ValueError(f"this {type(model).__name__} has no highway layers, so there are no gates to look at")
    for path in paths:
        if len(sown[(*path, "transform_gate")]) > 1:
            raise ValueError(f"layer {'/'.join(path)!r} is applied more than once, so it has no place in the order")
    found = []
    for path in paths:
        module, ndim = called[path]
        shape = sown[(*path, "transform_gate")][0].shape
        found.append(_Layers(path, module, shape[: len(shape) - ndim], shape[-1]))
    return found


def _inputs(images: Array, preprocess: Preprocess) -> Any:
    """Shape and dtype of the network's input for a single image."""
    return jax.eval_shape(preprocess, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))


def _states(model: nn.Module, params: Any, inputs: Array, found: Sequence[_Layers]) -> list[dict[str, jax.Array]]:
    """What each highway layer has of the inner states, by name, (batch, blocks)."""
    sown = flatten_dict(model.apply({"params": params}, inputs, mutable="intermediates")[1]["intermediates"])
    result: list[dict[str, jax.Array]] = []
    for layers in found:
        states = {name: sown[*layers.path, name][0] for name in InnerStates._fields if (*layers.path, name) in sown}
        states = {name: s.reshape(layers.count, *s.shape[len(layers.leading) :]) for name, s in states.items()}
        states = {
            name: s.mean(axis=tuple(range(2, s.ndim - 1)), dtype=jnp.promote_types(s.dtype, jnp.float32))
            for name, s in states.items()
        }
        result += [{name: state[index] for name, state in states.items()} for index in range(layers.count)]
    return result


def _evaluate(
    model: nn.Module,
    params: Any,
    split: Split,
    closed: np.ndarray,
    preprocess: Preprocess,
    batch_size: int,
    mesh: Mesh | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss and error with the gates of some layers closed: (masks,) each, for masks (masks, layers)."""
    mesh = parallel.runs_mesh() if mesh is None else mesh
    inputs = _inputs(split["x"], preprocess)

    def evaluate(closed, params, batches):
        params = close_gates(model, params, inputs, closed)

        def step(sums, batch):
            outputs = model.apply({"params": params}, preprocess(batch["x"]))
            assert isinstance(outputs, jax.Array)  # no collection is mutable, so there is nothing else
            loss = cross_entropy(outputs, batch)
            wrong = jnp.where(jnp.isfinite(loss), outputs.argmax(axis=-1) != batch["y"], jnp.nan)
            return sums + jnp.stack([loss, wrong]).sum(axis=-1, where=batch["y"] >= 0), None

        return lax.scan(step, jnp.zeros(2), batches)[0]

    masks = len(closed)
    closed = np.pad(closed, [(0, parallel.padded(masks, mesh) - masks), (0, 0)])
    # In lockstep the lesions share the kernels, so that a product takes lesions and samples as its rows.
    mapped = jax.jit(parallel.map_runs(evaluate, mesh, runs_per_batch=len(closed)))
    sums = mapped(parallel.split_runs(mesh, closed), *parallel.replicate(mesh, (params, _batches(split, batch_size))))
    loss, error = np.asarray(sums)[:masks].T / len(split["y"])
    return loss, error


def _batches(split: Split, batch_size: int) -> Split:
    """The samples in order, leaves with leading axes (steps, batch_size).

    The last batch is filled up with the last sample, labelled -1: `preprocess` and network get real samples alone.
    """
    samples = len(split["y"])
    size = min(batch_size, samples)

    def cut(array: Array, filler: Array) -> np.ndarray:
        filled = np.concatenate([array, np.repeat(filler, -samples % size, axis=0)])
        return filled.reshape(-1, size, *filled.shape[1:])

    images, labels = np.asarray(split["x"]), np.asarray(split["y"])
    return {"x": cut(images, images[-1:]), "y": cut(labels, np.full_like(labels[-1:], -1))}


def _table(rows: Sequence[Array]) -> np.ndarray:
    """Rows of any lengths as one array, filled up with NaN."""
    table = np.full((len(rows), max(map(len, rows))), np.nan, np.float32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table
